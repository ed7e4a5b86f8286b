package testenv

import (
	"io"
	"os/exec"
)

// afterwards is a script that waits for the end of its input, then stops the server of which the data is in $1/pg, if it
// runs, and removes the directory $1.
const afterwards = `
trap '' INT TERM HUP
read -r _
lock="$1/pg/postmaster.pid"
[ -f "$lock" ] && kill -INT "$(head -n 1 "$lock")"
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
	[ -f "$lock" ] && sleep 0.5
done
rm -rf "$1"`

// clearAfter has a process wait until the pipe that it returns is closed, by the system when this process ends however it ends, and
// clear away what there is in dir then: a test package need not call [Main]. Where there is no shell, it returns nil.
func clearAfter(dir string) io.Closer {
	cmd := exec.Command("/bin/sh", "-c", afterwards, "sh", dir)
	pipe, err := cmd.StdinPipe()
	if err != nil || cmd.Start() != nil {
		return nil
	}
	return pipe
}
