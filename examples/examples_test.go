package examples_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	"github.com/pgjet/pgjet/events"
	"github.com/pgjet/pgjet/examples/orders"
	"github.com/pgjet/pgjet/examples/protobuf/orderpb"
	"github.com/pgjet/pgjet/pgjettest"
)

// services are the packages of this module that pay orders.
var services = []string{"pgx", "sqlx", "gorm", "bun", "ent/service", "sqlc", "protobuf", "watermill/service"}

// TestServices: each service announces the order that it pays, and no other; the relay
// publishes it.
func TestServices(t *testing.T) {
	for _, name := range services {
		t.Run(name, func(t *testing.T) {
			program := filepath.Join(t.TempDir(), "service")
			if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "./"+name).CombinedOutput(); err != nil {
				t.Fatalf("go build: %v\n%s", err, out)
			}
			testService(t, program, name)
		})
	}
}

func testService(t *testing.T, program, name string) {
	path := pgjettest.Start(t, orders.Table, `insert into orders (id) values ('o-17'), ('o-18'); create table parcels (order_id text not null)`)
	url := start(t, program, "DATABASE_URL="+path.DatabaseURL, "NATS_URL="+path.NATSURL, "ADDR=127.0.0.1:0")
	for _, row := range []struct {
		id   string
		code int
	}{{"o-17", http.StatusNoContent}, {"none", http.StatusNotFound}, {"o-18", http.StatusNoContent}} {
		if code := post(t, url+"/orders/"+row.id+"/pay"); code != row.code {
			t.Errorf("paying %s answers %d, want %d", row.id, code, row.code)
		}
	}
	if got, want := fmt.Sprint(published(t, path.JS, 2)), "[o-17 o-18]"; got != want {
		t.Errorf("the stream has %s, want %s", got, want)
	}
	paid := 0
	if err := path.DB.QueryRow(t.Context(), `select count(*) from orders where paid`).Scan(&paid); err != nil || paid != 2 {
		t.Errorf("%d orders are paid, %v, want 2", paid, err)
	}
	if name == "protobuf" || name == "watermill/service" { // these ship orders, too
		pgjettest.Eventually(t, "each order has a parcel", func() bool {
			var parcels []string
			err := path.DB.QueryRow(t.Context(), `select array_agg(order_id order by order_id) from parcels`).Scan(&parcels)
			return err == nil && fmt.Sprint(parcels) == "[o-17 o-18]"
		})
	}
}

// start runs a program until the test ends, and returns the address that it prints.
func start(t *testing.T, program string, env ...string) string {
	t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), program)
	cmd.Env, cmd.Stderr = append(os.Environ(), env...), os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		killed := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
		if err := cmd.Wait(); err != nil || !killed.Stop() {
			t.Errorf("%s ended with %v", filepath.Base(program), err)
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

func post(t *testing.T, url string) int {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode
}

// published returns the orders with an event in the stream, once there are n.
func published(t *testing.T, js jetstream.JetStream, n int) (ids []string) {
	t.Helper()
	c, err := js.OrderedConsumer(t.Context(), events.DefaultStream, jetstream.OrderedConsumerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	for range n {
		msg, err := c.Next(jetstream.FetchMaxWait(30 * time.Second))
		if err != nil {
			t.Fatal(err)
		}
		e, err := events.FromMessage(msg.Headers(), msg.Data())
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, orderOf(t, e))
	}
	return ids
}

// orderOf returns the order in an event of type order.paid.
func orderOf(t *testing.T, e events.Event) string {
	t.Helper()
	if e.IsJSON() {
		paid, err := events.Decode[orders.Paid](e)
		if err != nil {
			t.Fatal(err)
		}
		return paid.OrderID
	}
	var paid orderpb.Paid
	if err := proto.Unmarshal(e.Data, &paid); err != nil || e.ContentType != "application/protobuf" {
		t.Fatalf("the event of %s: %v", e.ContentType, err)
	}
	return paid.GetOrderId()
}
