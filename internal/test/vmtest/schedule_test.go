package vmtest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/google/go-cmp/cmp"

	live "github.com/ctplan/ctplan/planner/host"
)

// metricsFile is what the units and the cron.d file have drift write.
const metricsFile = "/var/lib/prometheus/node-exporter/ctplan.prom"

// systemdSchedule has the timer look for drift with both backends: the service
// sees in its sandbox all that drift sees outside of it, leaves metrics, and
// its failure is told of.
func systemdSchedule(h *host) {
	h.t.Helper()
	for _, name := range []string{"ctplan-drift.service", "ctplan-drift.timer", "ctplan-verify.service", "ctplan-notify@.service"} {
		h.Write("/etc/systemd/system/"+name, h.deployed("systemd", name))
	}
	// The timer as it is, but soon.
	h.Write("/etc/systemd/system/ctplan-drift.timer.d/soon.conf", "[Timer]\nOnCalendar=\nOnActiveSec=1s\nRandomizedDelaySec=0\nAccuracySec=100ms\n")
	h.Run("mkdir -p /etc/ctplan; systemctl daemon-reload")
	// What the sandbox must not hide: the rules of another network namespace, which a
	// process of another user stands in.
	h.Run(`ip netns add other
		ip netns exec other iptables -A INPUT -m conntrack --ctstate NEW
		ip netns exec other setpriv --reuid 65534 --clear-groups sleep 1d >/dev/null 2>&1 &`)
	// A package database to ask. What rpm says on errors is a warning of drift's.
	h.Write("/usr/bin/rpm", "#!/bin/sh\necho \"rpm is asked by $(id -u)\" >&2\nexit 3\n")
	h.Run("chmod 755 /usr/bin/rpm; mkdir -p /var/lib/rpm")
	for _, backend := range []live.Backend{live.NFT, live.Legacy} {
		h.Run("iptables -F; ip6tables -F; iptables -P INPUT ACCEPT; ip6tables -P INPUT ACCEPT; rm -rf " + metricsFile + " /run/ctplan-notify /run/mail; : >/run/syslog")
		h.Use(backend)
		h.Run("systemctl restart netfilter-persistent")
		h.mode("notrack")
		h.Run("cp host.hcl /etc/ctplan/")
		h.Run("ctplan apply --auto-approve /etc/ctplan")
		h.scheduled(backend)
		h.sandboxed()
		h.verifySandboxed()
		h.Run("ctplan rollback --auto-approve")
	}
}

// sandboxed expects a snapshot that is taken in the service's sandbox to hold
// what one holds that is taken outside of it.
func (h *host) sandboxed() {
	h.t.Helper()
	h.Write("/run/systemd/system/sandboxed.service", regexp.MustCompile(`(?m)^(OnFailure|ExecStartPre)=.*\n|drift --metrics-file .*`).ReplaceAllStringFunc(
		h.deployed("systemd", "ctplan-drift.service"), func(found string) string {
			if strings.HasPrefix(found, "drift") {
				return "snapshot -o /var/lib/prometheus/node-exporter/inside.json /etc/ctplan"
			}
			return ""
		}))
	h.Run("mkdir -p /var/lib/prometheus/node-exporter; systemctl daemon-reload; systemctl start sandboxed || { journalctl -u sandboxed; false; }")
	h.Run("ctplan snapshot -o /tmp/outside.json /etc/ctplan")
	read := func(path string) map[string]any {
		h.t.Helper()
		var s map[string]any
		if err := json.Unmarshal([]byte(h.Run("cat "+path)), &s); err != nil {
			h.t.Fatal(err)
		}
		// What changes from one moment to the next.
		if conntrack, ok := s["conntrack"].(map[string]any); ok {
			delete(conntrack, "count")
		}
		modules, _ := s["modules"].([]any)
		for _, m := range modules {
			delete(m.(map[string]any), "refs")
		}
		return s
	}
	inside, outside := read("/var/lib/prometheus/node-exporter/inside.json"), read("/tmp/outside.json")
	if diff := cmp.Diff(outside, inside); diff != "" {
		h.Fail("the sandbox hides something: -outside +inside\n%s", diff)
	}
	if list, _ := outside["namespaces"].([]any); len(list) != 1 {
		h.Fail("the other network namespace is not in the snapshot: nothing is shown")
	}
	h.Run("rm /var/lib/prometheus/node-exporter/inside.json")
}

// scheduled has the timer run drift on a host without drift, with one, and
// with a configuration that cannot be read.
func (h *host) scheduled(backend live.Backend) {
	h.t.Helper()
	const loaded = "lsmod | cut -d' ' -f1 | sort"
	files, modules := h.files(), h.Run(loaded)
	h.elapse("success")
	h.Expect(loaded, modules)
	h.sameOutside(0)
	h.metrics("ctplan_drift_success 1", "ctplan_drift_objects 0", "ctplan_apply_cut_off 0", "ctplan_conntrack_drops_total 0")
	h.Expect("stat -c '%a %U' "+metricsFile, "644 root")
	h.Expect("ls /run/mail 2>/dev/null || echo none", "none")

	h.Run("iptables -t raw -F CTPLAN-OUTPUT; sed -i /CTPLAN-OUTPUT/d /etc/iptables/rules.v4; touch /var/lib/rpm/rpmdb.sqlite")
	h.Write("/usr/local/sbin/sendmail", "#!/bin/sh\n{ echo \"== $*\"; cat; } >>/run/mail\n")
	h.Run("chmod 755 /usr/local/sbin/sendmail")
	h.elapse("exit-code")
	h.sameOutside(2)
	h.metrics("ctplan_drift_success 1", "ctplan_drift_objects 2", `ctplan_drift_object{address="iptables.ipv4.raw",action="update",cause="`)
	h.Run("until systemctl show -P ActiveState ctplan-notify@ctplan-drift.service.service | grep -q inactive; do sleep 0.2; done")
	for _, words := range []string{"== -t", "To: root", "Subject: vm: ctplan-drift.service failed", "~ iptables.ipv4.raw", "CTPLAN-OUTPUT is not as declared", "systemctl status ctplan-drift.service tells more.", "rpm is asked by 65534"} {
		h.Run("grep -F -e '" + words + "' /run/mail || { cat /run/mail; false; }")
	}
	// Within the hour once, and nothing of that has failed.
	h.elapse("exit-code")
	h.Run("sleep 1")
	h.Expect("grep -c ^== /run/mail", "1")
	h.Expect("systemctl list-units --state=failed --plain --no-legend | cut -d' ' -f1", "ctplan-drift.service")
	// Without sendmail, the journal has it.
	h.Run("rm /usr/local/sbin/sendmail; rm -r /run/ctplan-notify; mv /etc/ctplan/host.hcl /root/")
	h.elapse("exit-code")
	h.Run("until journalctl -p err -t ctplan-notify -o cat | grep 'ctplan-drift.service failed'; do sleep 0.2; done")
	h.metrics("ctplan_drift_success 0")
	h.Run("mv /root/host.hcl /etc/ctplan/; systemctl reset-failed")

	// What cron would run does the same.
	line := regexp.MustCompile(`(?m)^17 \* \* \* \*  root  (ctplan .*)$`).FindStringSubmatch(h.deployed("cron.d", "ctplan"))
	if line == nil {
		h.Fail("deploy/cron.d/ctplan has no line that runs ctplan")
	}
	h.Run("rm " + metricsFile)
	h.Exits(2, line[1])
	h.metrics("ctplan_drift_success 1", "ctplan_drift_objects 2")

	h.Run("ctplan apply --auto-approve /etc/ctplan")
	h.elapse("success")
	h.metrics("ctplan_drift_success 1", "ctplan_drift_objects 0")
	if now := h.files(); now != files {
		h.Fail("drift has changed files:\n%s", unlike(files, now))
	}
	h.t.Logf("%s: %s", backend, h.Run("systemctl show -P Result ctplan-drift.service; systemd-analyze security --no-pager ctplan-drift.service | tail -n 1"))
}

// verifySandboxed expects of verify in its service what it says outside of it.
func (h *host) verifySandboxed() {
	h.t.Helper()
	h.Run("systemctl start ctplan-verify.service || { journalctl --no-pager -u ctplan-verify.service; false; }")
	h.metricsIn("ctplan-verify.prom", "ctplan_verify_success 1", `ctplan_verify_check{check="table_full",result="pass"} 1`, "ctplan_conntrack_table_full_messages 0")
	h.metricsIn("ctplan-status.prom", "ctplan_conntrack_growth_per_second ")
	inside := h.Run("journalctl --sync; journalctl -o cat -u ctplan-verify.service _COMM=ctplan")
	outside := h.Run("ctplan verify /etc/ctplan 2>&1")
	if !strings.HasSuffix(squeeze(inside), squeeze(outside)) {
		h.Fail("in its sandbox, verify says\n%s\nand outside of it\n%s", inside, outside)
	}
}

// elapse has the timer start the service, and waits for its result.
func (h *host) elapse(result string) {
	h.t.Helper()
	before := h.Run("systemctl show -P ExecMainStartTimestampMonotonic ctplan-drift.service")
	h.Run("systemctl stop ctplan-drift.timer; systemctl start ctplan-drift.timer")
	// Of a unit that nothing holds systemd forgets when it ran.
	h.Run(`until ! systemctl show -P ExecMainStartTimestampMonotonic ctplan-drift.service | grep -qx -e 0 -e ` + before + ` &&
		systemctl show -P ActiveState ctplan-drift.service | grep -qx -e inactive -e failed; do sleep 0.2; done; journalctl --sync`)
	if got := h.Run("systemctl show -P Result ctplan-drift.service"); got != result {
		h.Fail("the service ended with %q, want %q:\n%s", got, result, h.Run("journalctl --no-pager -u ctplan-drift.service -n 50"))
	}
}

// sameOutside expects the service to have printed what drift prints without its
// sandbox, warnings included.
func (h *host) sameOutside(status int) {
	h.t.Helper()
	inside := h.Run(`journalctl -o cat _SYSTEMD_INVOCATION_ID=$(systemctl show -P InvocationID ctplan-drift.service) _COMM=ctplan | sort`)
	outside := h.Exits(status, "ctplan drift /etc/ctplan >/tmp/said 2>&1; s=$?; sort /tmp/said; exit $s")
	if squeeze(inside) != squeeze(outside) || outside == "" {
		h.Fail("in its sandbox, drift says\n%s\nand outside of it\n%s", inside, outside)
	}
}

// squeeze leaves out empty lines and blanks at the ends of lines, as the journal
// does.
func squeeze(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		if line = strings.TrimRight(line, " \n"); line != "" {
			b.WriteString(line + "\n")
		}
	}
	return b.String()
}

// metrics expects lines that begin so in drift's metrics.
func (h *host) metrics(lines ...string) {
	h.t.Helper()
	h.metricsIn(filepath.Base(metricsFile), lines...)
}

func (h *host) metricsIn(name string, lines ...string) {
	h.t.Helper()
	text := "\n" + h.Run("cat "+filepath.Join(filepath.Dir(metricsFile), name))
	for _, line := range lines {
		if !strings.Contains(text, "\n"+line) {
			h.Fail("the metrics lack %s:%s", line, text)
		}
	}
}

// deployed is a file of deploy.
func (h *host) deployed(name ...string) string {
	h.t.Helper()
	text, err := os.ReadFile(filepath.Join(append([]string{"..", "..", "..", "deploy"}, name...)...))
	if err != nil {
		h.t.Fatal(err)
	}
	return string(text)
}
