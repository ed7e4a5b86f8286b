#!/usr/bin/env bash
# What goes wrong with consumers, and how it is put right, in two minutes: sign-ups, an
# event that fails for good, its dead letter, the fix, the redrive, and a read model that
# is lost and rebuilt by replay. Everything runs on this machine, in a directory of its own
# that is removed at the end. Start it with: make demo-recovery
set -euo pipefail

# Of the caller's settings none counts: what is deleted below is in no database of theirs.
for name in "${!PGJET_@}"; do unset "$name"; done

pgjet=${PGJET:-./bin/pgjet}
port=${PORT:-7600}
dir=$(mktemp -d)

"$pgjet" dev --dir "$dir/state" --port "$port" --json >"$dir/ready" 2>"$dir/log" &
dev=$!
trap 'kill "$dev" 2>/dev/null || true; wait "$dev" 2>/dev/null || true; rm -rf "$dir"' EXIT

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
run() { # a command of pgjet, as one would type it
	printf '$ pgjet'
	for word in "$@"; do case $word in *' '*) printf ' "%s"' "$word" ;; *) printf ' %s' "$word" ;; esac; done
	echo
	"$pgjet" "$@"
}
fail() { echo "$*"; tail -5 "$dir/log"; exit 1; }
until_true() { # what, command...
	local what=$1; shift
	for _ in $(seq 300); do if "$@"; then return; fi; sleep 0.1; done
	fail "waited 30 s for: $what"
}
value() { sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p" "$dir/ready"; }
sign_up() {
	curl -fsS -o /dev/null "$users/users" -H 'Content-Type: application/json' \
		-d "{\"email\":\"$1@example.com\",\"name\":\"$1\",\"password\":\"correct horse battery\"}"
	echo "signed up: $1"
}
fault() { curl -fsS -o /dev/null -X PUT "$inbox/fault" -d "$1"; }
sql() { psql "$PGJET_DATABASE_URL" -qAt -c "$1"; }
found() { curl -fsS "$directory/directory?q=$1" | grep -q "$1@example.com"; }
mailed() { curl -fsS "$inbox/api/messages" | grep -q "$1@example.com"; }
mails() { [ "$(find "$dir/state/mail" -type f -name '*.mail' | wc -l)" = "$1" ] || fail "the inbox has not $1 mails"; }
dead() { [ "$(sql "select count(*) from pgjet.dead_letter where state = 'dead'")" = "$1" ]; }

say "Starting PostgreSQL, NATS, the user service, the relay and two consumers ..."
until_true "pgjet dev to be ready" test -s "$dir/ready"
users=$(value users) inbox=$(value inbox) directory=$(value directory)
PGJET_DATABASE_URL=$(value database) PGJET_NATS_URL=$(value nats)
export PGJET_DATABASE_URL PGJET_NATS_URL

say "1. Two people sign up. Each gets a mail and an entry in the directory."
sign_up ada
sign_up bob
until_true "both mails" mailed bob
until_true "the directory" found bob
curl -fsS "$directory/directory?q=a"; echo

say "2. The mail server refuses the next mail for good (550). That event is poison: retrying would not help."
fault '{"status":550,"count":1}'
sign_up carol
until_true "a dead letter" dead 1
run consumer ls --exit-code=false
run dead groups

say "3. The mail server is mended. The dead letter is given back to the one consumer that failed."
run dead redrive --consumer welcome-mailer --all --yes --reason "the mail server is mended"
until_true "the mail" mailed carol
mails 3
echo "carol has her mail, and nobody else got a second one"

say "4. Somebody drops what the directory knows ..."
sql 'delete from directory.users; delete from directory.signups'
curl -fsS "$directory/directory?q="; echo

say "   ... and a replay of the stream rebuilds it, while the service runs. No mail is sent again."
run replay directory --all --again --yes --reason "the directory was lost"
until_true "the directory" found carol
curl -fsS "$directory/directory?q="; echo
mails 3
run consumer ls
say "Done: three sign-ups, $(curl -fsS "$directory/directory/signups" | sed -n 's/.*"users":\([0-9]*\).*/\1/p') people in the directory again, nothing lost, nothing done twice."
