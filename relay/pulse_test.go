package relay

import (
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// TestPulse: a server is silent if it owes an answer and no connection receives anything
// for a while.
func TestPulse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pulse
		dial := func() (ours, theirs net.Conn) {
			client, server := net.Pipe()
			conn, err := p.watched(client, nil)
			if err != nil {
				t.Fatal(err)
			}
			go func() { _, _ = server.Read(make([]byte, 1)) }()
			return conn, server
		}
		want := func(silent bool, when string) {
			t.Helper()
			if _, is := p.silent(silence); is != silent {
				t.Errorf("%s: silent() = %t, want %t", when, is, silent)
			}
		}
		ask := func(c net.Conn) {
			if _, err := c.Write([]byte("?")); err != nil {
				t.Fatal(err)
			}
		}
		answer := func(from, to net.Conn) {
			go func() { _, _ = from.Write([]byte("!")) }()
			if _, err := to.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Hour)
		want(false, "nobody has asked")
		a, serverA := dial()
		ask(a)
		want(false, "just asked")
		time.Sleep(silence)
		want(true, "no answer to the first question")
		answer(serverA, a)
		want(false, "answered")
		time.Sleep(time.Hour)
		want(false, "no question")
		b, serverB := dial()
		ask(b)
		want(false, "the first question after an hour")
		for range 10 {
			time.Sleep(silence - 1)
			answer(serverA, a)
			want(false, "one question is slow, others are answered")
		}
		time.Sleep(silence)
		want(true, "none is answered")
		answer(serverB, b)
		want(false, "the slow one is answered")
		c, _ := dial()
		ask(c)
		time.Sleep(silence)
		want(true, "a third one waits")
		c.Close()
		want(false, "it is closed")
		serverA.Close()
		serverB.Close()
	})
}

// TestPulseOfAFailedDial: there is nothing to wait for.
func TestPulseOfAFailedDial(t *testing.T) {
	var p pulse
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	conn, err := p.watched((&net.Dialer{}).DialContext(ctx, "tcp", "127.0.0.1:1"))
	if conn != nil || err == nil {
		t.Errorf("watched() = %v, %v, want an error", conn, err)
	}
}
