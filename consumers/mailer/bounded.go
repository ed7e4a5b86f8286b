package mailer

import (
	"errors"
	"net"
	"sync/atomic"
)

// longestAnswer bounds the server's answer before the client's next write, in bytes.
const longestAnswer = 64 << 10

var errLongAnswer = errors.New("the mail server's answer is too long")

// A boundedConn fails for good once more than longestAnswer was read since the last write.
type boundedConn struct {
	net.Conn
	read atomic.Int64
}

func (c *boundedConn) Read(b []byte) (int, error) {
	if c.read.Load() > longestAnswer {
		return 0, errLongAnswer
	}
	n, err := c.Conn.Read(b)
	c.read.Add(int64(n))
	return n, err
}

func (c *boundedConn) Write(b []byte) (int, error) {
	if c.read.Load() > longestAnswer {
		return 0, errLongAnswer
	}
	c.read.Store(0)
	return c.Conn.Write(b)
}
