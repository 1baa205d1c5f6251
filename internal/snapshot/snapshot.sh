#!/bin/sh
# What ctplan plans from, of a host on which ctplan is not installed:
#
#   ssh root@HOST sh -s < snapshot.sh > HOST.snapshot
#   ctplan plan --snapshot HOST.snapshot
#
# It reads, and writes to its standard output alone: no file is made, no rule,
# module or setting is changed. It decides nothing: what it prints are files and
# the output of commands, byte by byte in hexadecimal digits, and ctplan reads
# them as it reads a host. Arguments are further files to take. The output says
# what the firewall lets in: keep it as you keep that.

set -u
LC_ALL=C
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin
export LC_ALL PATH
if [ "$(id -u)" != 0 ]; then
	echo "snapshot.sh: this needs root, because iptables-save does" >&2
	exit 1
fi

# Bytes as hexadecimal digits.
if command -v od >/dev/null; then
	hex() { od -An -v -tx1; }
else
	hex() { hexdump -v -e '16/1 "%02x " "\n"'; }
fi

# A part: its kind, its name and what else is known of it; then its bytes; a dot.
# A name of other than plain characters is in digits too, after a colon.
begin() {
	kind=$1 name=$2
	shift 2
	case $name in
	*[!a-zA-Z0-9/._-]*)
		printf '# %s\n' "$(printf %s "$name" | tr -c ' -~' '?')"
		name=:$(printf %s "$name" | hex | tr -d ' \n')
		;;
	esac
	printf '%s %s %s\n' "$kind" "$name" "$*"
}
end() { echo .; }

there() { begin name "$1"; end; } # that it exists, and no more
plain() {                         # a file: mode and owner as ls has them, and the bytes
	# shellcheck disable=SC2012 # only the words before the name are taken
	ls -ldn "$1" | {
		read -r mode _ uid gid _
		begin file "$1" "$mode" "$uid" "$gid"
	}
	hex <"$1"
	end
}

# What stands at a path: the links on the way, the one at its end, the file.
take() {
	for path do
		up=$path
		while up=${up%/*} && [ -n "$up" ]; do
			[ ! -h "$up" ] || link "$up"
		done
		if [ -h "$path" ]; then
			link "$path"
			target=$(readlink -f "$path")
			[ ! -f "$target" ] || content "$target"
		elif [ -f "$path" ]; then
			content "$path"
		elif [ ! -e "$path" ]; then
			begin absent "$path"
			end
		fi
	done
}
link() {
	begin link "$1"
	readlink "$1" | hex
	end
}
content() {
	plain "$1"
	if command -v getfattr >/dev/null; then
		begin attributes "$1"
		getfattr --absolute-names -d -m - -e hex "$1" 2>/dev/null | hex
		end
	fi
}

# Files of the kernel's.
kernel() {
	for path do
		if [ -f "$path" ] && [ -r "$path" ]; then plain "$path"; elif [ -e "$path" ]; then there "$path"; fi
	done
}

# What a command prints, and how it ended.
run() {
	begin run "$*"
	# The status comes another way: it must not get between the digits.
	{ status=$({ { "$@" </dev/null 2>/dev/null; echo "$?" >&3; } | hex >&4; } 3>&1); } 4>&1
	echo "= $status"
	end
}

echo "ctplan snapshot by script, version 1"

# Who the host is.
kernel /proc/sys/kernel/hostname /proc/sys/kernel/osrelease /proc/sys/kernel/random/boot_id /proc/sys/kernel/modules_disabled \
	/proc/meminfo /proc/cmdline /proc/1/comm /proc/mounts /sys/devices/system/cpu/online
take /etc/machine-id /etc/os-release /usr/lib/os-release
run uname -m
run sed -n '/^KernelPageSize/p' /proc/self/smaps

# Connection tracking, its settings, modules.
kernel /proc/modules /proc/net/stat/nf_conntrack /proc/sys/net/nf_conntrack_max /proc/sys/net/core/netdev_max_backlog \
	/proc/sys/net/netfilter/nf_conntrack_* /proc/sys/net/ipv4/vs/conntrack /proc/sys/net/bridge/bridge-nf-call-ip*tables \
	/proc/sys/net/ipv[46]/conf/all/forwarding \
	/sys/module/nf_conntrack /sys/module/nf_conntrack/initstate \
	/sys/module/nf_conntrack/parameters/hashsize /sys/module/nf_tables /sys/module/nf_tables/initstate
tree=/lib/modules/$(uname -r)
last=$(printf '%s\n' /lib/modules/*/modules.dep | sed 's,/modules.dep$,,' | sort -V | tail -n 1)
[ "$last" != "$tree" ] || last=
for tree in "$tree" "$last"; do
	for list in modules.dep modules.builtin modules.alias; do
		if [ -f "$tree/$list" ]; then
			begin file "$tree/$list" -rw-r--r-- 0 0
			grep -E '/(nf_|nft_|x_|xt_|ip_|ipt|ip6)[^/:]*\.ko|^alias [^: ]* (nf|xt_|ip|act_|openvswitch|vport)' "$tree/$list" | hex
			end
		fi
	done
done

# Files that boot reads.
for lib in /etc /run /usr/local/lib /usr/lib /lib; do
	take "$lib"/sysctl.d/*.conf "$lib"/modprobe.d/*.conf "$lib"/modprobe.d/*.alias "$lib"/modules-load.d/*.conf
done
take /etc/sysctl.conf /etc/modules /etc/initramfs-tools/modules /etc/rc.local /etc/rc.d/rc.local /etc/sysconfig/modules/*.modules \
	/etc/init.d/iptables /etc/init.d/ip6tables /etc/rc.d/init.d/iptables /etc/rc.d/init.d/ip6tables \
	/usr/libexec/iptables/iptables.init /usr/libexec/iptables/ip6tables.init \
	/etc/sysconfig/iptables-config /etc/sysconfig/ip6tables-config \
	/etc/sysconfig/iptables /etc/sysconfig/ip6tables /etc/iptables/rules.v4 /etc/iptables/rules.v6 \
	/etc/iptables/iptables.rules /etc/iptables/ip6tables.rules /etc/iptables/rules-save /etc/iptables/rules6-save \
	/var/lib/iptables/rules-save /var/lib/ip6tables/rules-save \
	/etc/nftables.conf /etc/sysconfig/nftables.conf /etc/nftables/* /etc/nftables.d/* "$@"

# Which servers of UDP the host asks; of files that may hold passwords, the lines about DHCP alone.
take /etc/resolv.conf /run/systemd/resolve/resolv.conf /etc/chrony/chrony.conf /etc/chrony.conf /etc/ntp.conf /etc/ntpsec/ntp.conf \
	/etc/systemd/timesyncd.conf /etc/systemd/network/*.network /run/systemd/network/*.network
for path in /etc/network/interfaces /etc/network/interfaces.d/* /etc/sysconfig/network-scripts/ifcfg-*; do
	if [ -f "$path" ]; then
		begin file "$path" -rw-r--r-- 0 0
		grep -E '^[[:space:]]*(iface[[:space:]]|BOOTPROTO=)' "$path" | hex
		end
	fi
done

# What starts at boot, and what runs: by names alone.
for path in /run/systemd/system /etc/rc?.d /etc/rc.d/rc?.d /etc/rc?.d/S* /etc/rc.d/rc?.d/S* \
	/sys/fs/cgroup/system.slice/*.service /sys/fs/cgroup/systemd/system.slice/*.service \
	/etc/systemd/system/*.wants/* /etc/systemd/system/*.requires/* /run/systemd/system/*.wants/* /run/systemd/system/*.requires/* \
	/usr/local/lib/systemd/system/*.wants/* /usr/lib/systemd/system/*.wants/* /lib/systemd/system/*.wants/* \
	/sbin/ifup /usr/sbin/ifup /bin/ifup /sbin/initctl /run/openrc /etc/runlevels/*/*; do
	if [ -e "$path" ] || [ -h "$path" ]; then there "$path"; fi
done
for path in /etc/systemd/system/*.service; do
	[ ! -h "$path" ] || link "$path"
done
for path in /run/*.pid /run/*/*.pid; do
	if [ -f "$path" ]; then
		kernel "$path" "/proc/$(tr -cd 0-9 <"$path")/stat"
	fi
done

# Who brings rules back: of what is started, the lines that name a program which
# changes rules, or a script that does; those scripts, what they call, and the rules
# files that they name. Other lines and other files are left out.
names() { grep -Eq '(^|[^[:alnum:]_])(ip6?tables|nft)([^[:alnum:]_]|$)' "$1"; }
rules() { grep -Eq '^\*(filter|nat|mangle|raw|security)' "$1"; }
calls() { # a script, one that names such a program
	[ "$(head -c 2 "$1" | tr -d '\0')" = '#!' ] || return 1
	tr -s ' \t"=;|&<>()`'"'" '\n' <"$1" | grep '^/[a-zA-Z0-9/._@-]*$' | grep -v '^/\(proc\|dev\|sys\)/' | sort -u | {
		while read -r called; do
			if [ -f "$called" ] && names "$called"; then exit 0; fi
		done
		exit 1
	}
}
found=
words() { # of a line that name such a file, into found
	IFS=" 	\"'=;|&<>()\`"
	set -f
	# shellcheck disable=SC2086 # it is to be split
	set -- $1
	unset IFS
	set +f
	for word do
		word=${word#[-@+!:]}
		case $word in
		*[!a-zA-Z0-9/._@-]* | /proc/* | /dev/* | /sys/*) ;;
		/*) if [ -f "$word" ] && { names "$word" || rules "$word" || calls "$word"; }; then found="$found $word"; fi ;;
		esac
	done
}
keeps() { # a line
	before=$found
	case $1 in
	*/*) words "$1" ;;
	esac
	case $1 in
	*ptables* | *p6tables* | *nft* | Exec*= | source*) ;;
	*) [ "$found" != "$before" ] ;;
	esac
}
excerpt() {
	# shellcheck disable=SC2012
	ls -ldnL "$1" | {
		read -r mode _ uid gid _
		begin file "$1" "$mode" "$uid" "$gid"
	}
	while IFS= read -r text || [ -n "$text" ]; do
		if keeps "$text"; then printf '%s\n' "$text"; else echo; fi
	done <"$1" | hex
	end
	while IFS= read -r text || [ -n "$text" ]; do keeps "$text" || :; done <"$1"
}
for path in /etc/systemd/system/*.wants/* /etc/systemd/system/*.requires/* /run/systemd/system/*.wants/* /run/systemd/system/*.requires/* \
	/usr/local/lib/systemd/system/*.wants/* /usr/lib/systemd/system/*.wants/* /lib/systemd/system/*.wants/* /etc/rc?.d/S* /etc/rc.d/rc?.d/S* /etc/runlevels/*/*; do
	unit=${path##*/}
	case $path in
	*/S[0-9][0-9]*) unit=${unit#S[0-9][0-9]} ;;
	esac
	printf '%s\n' "${unit%.*}" "$unit"
done | sort -u | {
	while read -r unit; do
		for file in "$unit" "${unit%%@*}@"; do
			for lib in /etc /run /usr/local/lib /usr/lib /lib; do
				for path in "$lib/systemd/system/$file.service" "$lib/systemd/system/$file.service.d"/*.conf; do
					[ ! -h "$lib" ] && [ ! -h "$path" ] && [ -f "$path" ] && excerpt "$path"
				done
			done
		done
		for path in "/etc/init.d/$unit" "/etc/rc.d/init.d/$unit"; do
			case $unit in iptables | ip6tables) continue ;; esac
			[ -f "$path" ] && { names "$path" || calls "$path"; } && found="$found $path"
		done
	done
	for path in /etc/network/interfaces /etc/network/interfaces.d/* /etc/crontab /etc/cron.d/* /etc/crontabs/root /var/spool/cron/root /var/spool/cron/crontabs/root \
		/etc/udev/rules.d/*.rules /run/udev/rules.d/*.rules /usr/local/lib/udev/rules.d/*.rules /etc/init/*.conf; do
		[ -f "$path" ] && excerpt "$path"
	done
	for path in /etc/network/if-pre-up.d/* /etc/network/if-up.d/* /etc/NetworkManager/dispatcher.d/* /etc/NetworkManager/dispatcher.d/pre-up.d/* \
		/usr/lib/NetworkManager/dispatcher.d/* /etc/networkd-dispatcher/*.d/* /etc/local.d/*.start /etc/rc.local /etc/rc.d/rc.local; do
		if [ -f "$path" ]; then
			if names "$path" || calls "$path"; then found="$found $path"; fi
		fi
	done
	taken=' '
	for round in 1 2 3; do
		now=$found found=
		for path in $now; do
			case $taken in *" $path "*) ;; *) take "$path" ;; esac
			taken="$taken$path "
			if [ "$round" != 3 ] && ! rules "$path"; then
				while IFS= read -r text || [ -n "$text" ]; do words "$text"; done <"$path"
			fi
		done
	done
}

# Rules. nf_tables is not asked where that would load it; the save opens no
# socket to say its version.
nft=no
if [ -d /sys/module/nf_tables ] || [ ! -e /proc/modules ]; then nft=yes; fi
for tool in iptables ip6tables; do
	kernel /proc/net/"${tool%tables}"_tables_names /proc/net/"${tool%tables}"_tables_matches /proc/net/"${tool%tables}"_tables_targets
	for save in $tool-save $tool-legacy-save $tool-nft-save; do
		if file=$(command -v "$save"); then
			begin program "$save"
			readlink -f "$file" | hex
			end
			case $nft$(readlink -f "$file") in no*nft*) ;; *) run "$save" ;; esac
		fi
	done
	if file=$(command -v $tool); then
		run $tool-save --version
		case $nft$(readlink -f "$file") in no*nft*) ;; *) run $tool --version ;; esac
	fi
done
if [ $nft = yes ] && command -v nft >/dev/null; then run nft list tables; fi
for path in /proc/[0-9]*/ns/net; do readlink "$path"; done 2>/dev/null | sort -u | {
	begin run namespaces
	hex
	end
}

# Who is connected, by which ways, and who reads this.
kernel /proc/net/tcp /proc/net/tcp6 /proc/net/udp /proc/net/udp6 /proc/sys/net/ipv6 /proc/sys/net/ipv4/ip_local_port_range /sys/class/net/*/bridge
if [ -r /proc/net/nf_conntrack ]; then
	begin file /proc/net/nf_conntrack -r--r----- 0 0
	head -n 10000 /proc/net/nf_conntrack | hex
	end
fi
if command -v ip >/dev/null; then
	run ip -o addr show
	run ip -o -4 route show table main
	run ip -o -6 route show table main
	run ip -4 rule show
	run ip -6 rule show
fi
begin run sessions
{
	printf '%s\n' "${SSH_CONNECTION-}"
	pid=$$
	while [ "${pid:-0}" -gt 1 ] && [ -r "/proc/$pid/environ" ]; do
		tr '\0' '\n' <"/proc/$pid/environ" | sed -n 's/^SSH_CONNECTION=//p'
		pid=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$pid/status")
	done
} | hex
end
echo end
