package testenv

import (
	"io"
	"os/exec"
)

// afterwards is a script that waits for the end of its input. Then it stops the server with the
// data in $1/pg, if it runs, and removes the directory $1.
const afterwards = `
trap '' INT TERM HUP
read -r _
lock="$1/pg/postmaster.pid"
[ -f "$lock" ] && kill -INT "$(head -n 1 "$lock")"
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
	[ -f "$lock" ] && sleep 0.5
done
rm -rf "$1"`

// clearAfter starts a process that waits until the returned pipe is closed, and then removes dir
// and stops its server. The system closes the pipe however this process ends: a test package need
// not call [Main]. Without a shell, clearAfter returns nil.
func clearAfter(dir string) io.Closer {
	cmd := exec.Command("/bin/sh", "-c", afterwards, "sh", dir)
	pipe, err := cmd.StdinPipe()
	if err != nil || cmd.Start() != nil {
		return nil
	}
	return pipe
}
