package chaos

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"

	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/internal/tests/program"
)

// A toxic is a fault of a connection, as toxiproxy describes it. Downstream is what the server
// sends.
type toxic struct {
	name       string
	breaks     bool             // the connection
	Type       string           `json:"type"`
	Stream     string           `json:"stream"`
	Attributes map[string]int64 `json:"attributes"`
}

// toxics returns a fault of each kind, in random order and at random points.
func (g *rig) toxics() []toxic {
	at := g.rand.Int64N
	all := []toxic{
		{"slow", false, "latency", "downstream", map[string]int64{"latency": 30, "jitter": 30}},
		{"requests byte for byte", false, "slicer", "upstream", map[string]int64{"average_size": 1}},
		{"answers byte for byte", false, "slicer", "downstream", map[string]int64{"average_size": 1}},
		{"requests cut", true, "limit_data", "upstream", map[string]int64{"bytes": at(60_000)}},
		{"answers cut", true, "limit_data", "downstream", map[string]int64{"bytes": at(2000)}},
		{"requests lost", true, "timeout", "upstream", map[string]int64{"timeout": 1 + at(300)}},
		{"answers lost", true, "timeout", "downstream", map[string]int64{"timeout": 1 + at(300)}},
		{"reset", true, "reset_peer", "downstream", map[string]int64{"timeout": at(300)}},
	}
	g.rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}

func poison(t *testing.T, p *toxiproxy.Proxy, x toxic) {
	t.Helper()
	b, err := json.Marshal(x)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Toxics.AddToxicJson(bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
}

// TestChaosConnections disturbs the relay's connections.
func TestChaosConnections(t *testing.T) {
	t.Parallel()
	for _, server := range []string{"NATS", "PostgreSQL"} {
		t.Run("to "+server, func(t *testing.T) {
			t.Parallel()
			g := newRig(t, testenv.DatabaseURL(t), testenv.NATS(t).URL())
			var proxy *toxiproxy.Proxy
			if server == "NATS" {
				proxy, g.nats = program.Proxied(t, g.nats)
			} else {
				proxy, g.database = program.Proxied(t, g.database)
			}
			g.begin()
			noticed := time.Duration(0)
			for range upTo(1, 8) {
				for _, x := range g.toxics() {
					noticed = max(noticed, g.disturb(proxy, x))
				}
			}
			g.Run("notices soon that its connection to "+server+" is lost", func(t *testing.T) {
				if noticed > 12*time.Second {
					t.Errorf("it took %s", noticed)
				}
			})
			g.check()
		})
	}
}

// disturb disturbs the connections for a while. Connections that are to break must break. It returns
// how long that took.
func (g *rig) disturb(proxy *toxiproxy.Proxy, x toxic) (noticed time.Duration) {
	g.Helper()
	begun, before, sessions := time.Now(), g.lastSeq(), g.sessions()
	poison(g.T, proxy, x)
	g.moment(300 * time.Millisecond)
	g.backlog(300, 10)
	if x.breaks {
		testenv.Eventually(g, program.Healing, x.name+" ends a session", func() bool { return g.sessions() > sessions })
		noticed = time.Since(begun)
	}
	g.moment(time.Second)
	proxy.Toxics.ResetToxics(g.Context())
	meanwhile, healed := g.lastSeq()-before, time.Now()
	g.flows(10)
	g.Logf("%s: %d stored within %s, going on %s later", x.name, meanwhile,
		healed.Sub(begun).Round(time.Millisecond), time.Since(healed).Round(time.Millisecond))
	return noticed
}

// sessions returns how many sessions the relay has begun.
func (g *rig) sessions() float64 {
	g.Helper()
	return g.metric(g.relay, "pgjet_relay_sessions_total")
}
