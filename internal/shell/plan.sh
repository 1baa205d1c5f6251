
# ---- From here on, every such script is the same.

LC_ALL=C
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin
export LC_ALL PATH
umask 022
state=/var/lib/ctplan-script/$plan

say() { printf '%s\n' "$*" >&2; }
die() {
	say "error: $*"
	exit 1
}

# The commands of the backend that the plan is for.
tool() {
	case $1 in
	nft) sign='(nf_tables)' ;;
	*) sign='(legacy)' ;;
	esac
	command=$2$3
	version=$("$command" --version </dev/null 2>/dev/null) # a restore that does not know it reads on
	case $version in
	*"$sign"*) ;;
	*'('*) command=$2-$1$3 ;; # the other backend
	*) [ "$1" = legacy ] || command=$2-$1$3 ;; # before 1.8 there is one alone
	esac
	printf %s "$command"
}

# A table as it stands, of what iptables-save prints: no counters, and nothing of
# a table that holds nothing and lets everything pass.
table() {
	awk -v want="$1" '
		/^#/ { next }
		/^\*/ { on = ($0 == "*" want); n = 0; bare = 1; next }
		/^COMMIT/ { if (on && !bare) for (i = 1; i <= n; i++) print line[i]; on = 0; next }
		on {
			sub(/^\[[0-9]+:[0-9]+\] /, "")
			if (/^:/) { sub(/ \[[0-9]+:[0-9]+\]$/, ""); if (!/ ACCEPT$/) bare = 0 } else bare = 0
			line[++n] = $0
		}'
}
tables() {
	text=$(cat)
	for t in "$@"; do
		echo "*$t"
		printf '%s\n' "$text" | table "$t"
	done
}
# rules_now BACKEND FAMILY TABLES...
rules_now() {
	saver=$(tool "$1" "$2" -save)
	shift 2
	saved=$("$saver") || return 1
	printf '%s\n' "$saved" | tables "$@"
}
rules_are() { # BEFORE BACKEND FAMILY TABLES...
	wanted=$1
	shift
	now=$(rules_now "$@") || return 1
	shift 2
	[ "$now" = "$("$wanted" | tables "$@")" ]
}
restore() { # BACKEND FAMILY ARGUMENTS... <SCRIPT
	loader=$(tool "$1" "$2" -restore) locks=$1
	shift 2
	if "$loader" --help </dev/null 2>&1 | grep -q -e --wait; then
		"$loader" -w 10 "$@"
	elif [ "$locks" = legacy ] && command -v flock >/dev/null; then # it takes none by itself
		flock -w 10 /run/xtables.lock "$loader" "$@"
	else
		"$loader" "$@"
	fi
}
change_rules() { # N LINES BACKEND FAMILY TABLES...
	n=$1 lines=$2 backend=$3 family=$4
	shift 4
	"load_$n" || return 1
	now=$(rules_now "$backend" "$family" "$@") || return 1
	printf '%s\n' "$now" >"$state/$n.after" || return 1
	if [ "$(printf '%s\n' "$now" | wc -l)" -ne "$lines" ]; then
		say "read back, the rules are not those of the plan"
		return 1
	fi
}
back_rules() { # N BACKEND FAMILY TABLES...
	n=$1
	shift
	! rules_are "before_$n" "$@" || return 0
	if [ "$force" = no ] && [ -f "$state/$n.after" ] && [ "$(rules_now "$@")" != "$(cat "$state/$n.after")" ]; then
		say "somebody has changed these rules since: look at them, then take back with: sh $0 undo --force"
		return 1
	fi
	"before_$n" | restore "$1" "$2" || return 1
	rules_are "before_$n" "$@"
}

file_is() { # CONTENT PATH
	if [ "$1" = none ]; then
		[ ! -e "$2" ] && [ ! -h "$2" ]
		return
	fi
	[ -f "$2" ] && [ ! -h "$2" ] && "$1" | cmp -s - "$2"
}
put_file() { # CONTENT PATH MODE OWNER
	if [ "$1" = none ]; then
		rm -f "$2"
		sync
		return
	fi
	new=${2%/*}/.ctplan-$plan
	rm -f "$new"
	mkdir -p "${2%/*}" || return 1
	# The old file's copy has its owner, mode and attributes.
	if [ -f "$2" ]; then
		cp -a "$2" "$new" || return 1
		"$1" >"$new" || return 1
	else
		"$1" >"$new" || return 1
		if ! chown "$4" "$new" || ! chmod "$3" "$new"; then return 1; fi
	fi
	sync
	mv -f "$new" "$2" || return 1
	if command -v restorecon >/dev/null; then restorecon "$2"; fi
	sync
	file_is "$1" "$2"
}
back_file() { # BEFORE AFTER PATH MODE OWNER
	rm -f "${3%/*}/.ctplan-$plan" # of a try that was cut off
	! file_is "$1" "$3" || return 0
	if [ "$force" = no ] && ! file_is "$2" "$3"; then
		say "somebody has changed $3 since: look at it, then take back with: sh $0 undo --force"
		return 1
	fi
	put_file "$1" "$3" "$4" "$5"
}

value_is() { [ "$(cat "$1" 2>/dev/null)" = "$2" ]; }
put_value() { # PATH VALUE
	echo "$2" >"$1" || return 1
	[ "$(cat "$1")" = "$2" ] || [ "${1##*/}" = hashsize ]
}
back_value() { # PATH BEFORE
	[ -e "$1" ] || return 0 # its module is not loaded
	value_is "$1" "$2" || put_value "$1" "$2"
}

loaded() { grep -q "^$1 " /proc/modules; }
load() { loaded "$1" || modprobe -- "$1"; }
unload() {
	for _ in 1 2 3 4; do
		loaded "$1" || return 0
		! rmmod "$1" 2>/dev/null || return 0
		sleep 1
	done
	rmmod "$1"
}

# Is the host what the plan was made for?
check() {
	wrong=0
	n=0
	while [ "$n" -lt "$steps" ]; do
		n=$((n + 1))
		at=$n
		if ! "check_$n"; then
			say "not as the plan was made for: $("name_$at")"
			wrong=1
		fi
		n=$at
	done
	return $wrong
}

undo() {
	[ -f "$state/began" ] || {
		say "nothing to take back"
		return 0
	}
	left=0
	# Files first: a module that comes back must find its old configuration.
	for pass in files rest; do
		n=$steps
		while [ "$n" -gt 0 ]; do
			at=$n
			case $pass$(kind "$at") in
			filesfile | restrules | restvalue)
				if grep -qx "$at" "$state/began" && ! "undo_$at"; then
					say "could not take back: $("name_$at")"
					left=1
				fi
				;;
			esac
			n=$((at - 1))
		done
	done
	[ $left = 0 ] || return 1
	rm -f "$state"/began "$state"/*.after "$state/waiting" "$state/script"
	sync
	say "taken back: the host is as it was"
}
kind() {
	case " $files " in *" $1 "*) echo file && return ;; esac
	case " $rules " in *" $1 "*) echo rules && return ;; esac
	echo value
}

apply() {
	[ ! -f "$state/began" ] || die "this plan was begun here before: sh $0 undo, or sh $0 confirm where it is to stay"
	check || die "nothing was changed: plan again"
	n=0
	for n in $rules; do
		at=$n
		"test_$n" || die "iptables does not take the rules of $("name_$at"); nothing was changed"
	done
	if ! mkdir -p "$state" || ! chmod 700 "${state%/*}"; then die "cannot write to $state"; fi
	trap 'say "interrupted: taking everything back"; undo; exit 1' HUP INT TERM
	if [ "$within" -gt 0 ]; then
		[ -f "$0" ] || die "--confirm-within needs this script as a file"
		if ! cp "$0" "$state/script" || ! : >"$state/waiting"; then die "cannot write to $state"; fi
		if [ -d /run/systemd/system ] && command -v systemd-run >/dev/null; then
			systemd-run --quiet --on-active="$within" sh "$state/script" expire || die "systemd-run failed; nothing was changed"
		else
			say "systemd does not run here: a process in the background takes the change back, which a reboot would end"
			(trap '' HUP && sleep "$within" && exec sh "$state/script" expire) </dev/null >/dev/null 2>&1 9>&- &
		fi
	fi
	n=0
	while [ "$n" -lt "$steps" ]; do
		n=$((n + 1))
		at=$n
		if ! echo "$at" >>"$state/began" || ! sync; then die "cannot write to $state"; fi
		if ! "do_$at"; then
			say "failed: $("name_$at"); taking everything back"
			undo
			exit 1
		fi
		say "[$at/$steps] $("name_$at")"
		n=$at
	done
	trap - HUP INT TERM
	if [ "$within" -gt 0 ]; then
		say "applied; to keep it, within $within seconds and over a new connection: sh $0 confirm"
	else
		say "applied; to take it back: sh $0 undo"
	fi
}

usage() {
	say "usage: sh $0 check | apply [--confirm-within SECONDS] | confirm | undo [--force]"
	exit 1
}
force=no within=0
[ "$(id -u)" = 0 ] || die "this needs root"
[ "$(cat /proc/sys/kernel/hostname)" = "$host" ] || die "this plan is for $host, not for this host"
if command -v flock >/dev/null; then
	exec 9>>/run/ctplan.lock
	case ${1-} in
	expire) flock 9 ;;
	*) flock -n 9 || die "another ctplan is at work on this host" ;;
	esac
fi
case ${1-} in
check)
	check && say "as the plan was made for"
	;;
apply)
	case ${2-} in
	'') ;;
	--confirm-within)
		within=${3-}
		case $within in '' | *[!0-9]* | 0) usage ;; esac
		;;
	*) usage ;;
	esac
	apply
	;;
confirm)
	rm -f "$state/waiting" "$state/script" && sync && say "confirmed: it stays"
	;;
expire)
	[ ! -f "$state/waiting" ] || undo
	;;
undo)
	case ${2-} in '') ;; --force) force=yes ;; *) usage ;; esac
	undo
	;;
*) usage ;;
esac
