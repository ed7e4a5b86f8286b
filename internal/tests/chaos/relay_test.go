package chaos

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgjet/pgjet/internal/testenv"
	"github.com/pgjet/pgjet/internal/tests/program"
)

// TestChaosRelayKilled kills the relay while it drains a backlog.
func TestChaosRelayKilled(t *testing.T) {
	t.Parallel()
	g := newRig(t, testenv.DatabaseURL(t), testenv.NATS(t).URL())
	count, kills := upTo(10_000, 100_000), upTo(6, 40)
	g.backlog(count, 100)
	g.writer.start()
	g.relay = g.startRelay()
	for range kills {
		before := g.lastSeq()
		at := max(before+1, min(uint64(count), before+uint64(g.rand.IntN(2*count/kills))))
		g.relay.Eventually(program.Healing, "it publishes", func() bool { return g.lastSeq() >= at })
		g.relay.Kill()
		g.relay = g.startRelay()
	}
	g.check()
}

// TestChaosRelayKilledAtEachWrite kills the relay right before one of its threads writes for the
// first time, then for the second, and so on. Each step of the protocol is a write to a connection.
func TestChaosRelayKilledAtEachWrite(t *testing.T) {
	longOnly(t)
	t.Parallel()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("needs strace, which is not installed")
	}
	g := newRig(t, testenv.DatabaseURL(t), testenv.NATS(t).URL())
	killed := 0
	for i := range upTo(0, 120) {
		g.backlog(1+g.rand.IntN(60), 7)
		p := program.Command(t, nil, "relay", "--database-url", g.database, "--nats-url", g.nats, "--source", program.Source, "--admin-addr", program.AnyPort)
		p.Cmd.Args = append([]string{strace, "-f", "-o", "/dev/null", "-e", "trace=write",
			"-e", fmt.Sprint("inject=write:signal=KILL:when=", 1+i%40), "--", p.Cmd.Path}, p.Cmd.Args[1:]...)
		p.Cmd.Path = strace
		p.Cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		p.Begin()
		want := uint64(program.Query[int64](t, g.db, `select count(*) from pgjet.outbox`))
		testenv.Eventually(t, program.Healing, "it is killed or done", func() bool { return p.Ended() || g.lastSeq() >= want })
		select {
		case <-p.Done:
			killed++
		case <-time.After(300 * time.Millisecond): // time to write checkpoints, and to poll
		}
		_ = syscall.Kill(-p.Cmd.Process.Pid, syscall.SIGKILL) // it may have ended
		<-p.Done
		p.Check()
	}
	if killed < upTo(0, 40) {
		t.Errorf("the relay was killed %d times only: does strace inject signals here?", killed)
	}
	t.Logf("killed %d times", killed)
	g.relay = g.startRelay()
	g.check()
}

// leader returns the ready one of two relays, and the other one.
func (g *rig) leader(relays []*program.Service) (leads, stands *program.Service) {
	g.Helper()
	testenv.Eventually(g, program.Healing, "one of the relays leads", func() bool {
		i := slices.IndexFunc(relays, func(s *program.Service) bool {
			status, body := program.Get(g, s.Admin+"/readyz")
			return status == 200 && strings.Contains(body, `"role":"leader"`)
		})
		if i >= 0 {
			leads, stands = relays[i], relays[1-i]
		}
		return i >= 0
	})
	return leads, stands
}

// TestChaosFailoverAfterACrash kills the leading relay, and measures how long no event is stored.
func TestChaosFailoverAfterACrash(t *testing.T) {
	g := newRig(t, testenv.DatabaseURL(t), testenv.NATS(t).URL())
	relays := []*program.Service{g.startRelay(), g.startRelay()}
	g.writer.start()
	var took []time.Duration
	for range upTo(3, 20) {
		leads, stands := g.leader(relays)
		stands.HasRole(stands.Admin, "standby")
		g.moment(200 * time.Millisecond)
		leads.Kill()
		begun := time.Now()
		g.flows(1)
		took = append(took, time.Since(begun))
		relays = []*program.Service{stands, g.startRelay()}
	}
	slices.Sort(took)
	t.Logf("failover after a crash: %s", took)
	if median := took[len(took)/2]; median > time.Second*time.Duration(1+memoryFactor()) {
		t.Errorf("failover after a crash took %s, want less than 1 s", median)
	}
	g.relay, _ = g.leader(relays)
	g.check()
}

// TestChaosZombie freezes the leading relay, and lets it continue long after the other one has
// taken over. It never continues its old session: it stands by, or leads in a new session. It leads
// if its last append was under way and is stored when it continues. Then the other relay's append
// is refused, the other session ends, and both want the lead. No two relays lead in one epoch.
func TestChaosZombie(t *testing.T) {
	t.Run("its session is ended by hand", func(t *testing.T) {
		t.Parallel()
		zombie(t, (*rig).endSession)
	})
	t.Run("PostgreSQL ends its session", func(t *testing.T) {
		t.Parallel()
		zombie(t, func(*rig) {})
	})
}

// endSession ends the session by which a relay leads.
func (g *rig) endSession() {
	g.Helper()
	g.exec(`select pg_terminate_backend(l.pid, 5000)
		from pg_locks l join pg_stat_activity a using (pid)
		where l.locktype = 'advisory' and l.granted and a.datname = current_database()`)
}

// ledAs matches the epoch in which a relay reports that it leads.
var ledAs = regexp.MustCompile(`"msg":"relay leads"[^\n]*?"epoch":(\d+)`)

// epoch returns the epoch of the latest session.
func (g *rig) epoch() int64 {
	g.Helper()
	return program.Query[int64](g, g.db, `select epoch from pgjet.leader`)
}

// relayRole returns what a relay says it is: leader, standby, or "" while it is neither.
func relayRole(g *rig, s *program.Service) string {
	var page struct{ Checks []struct{ Name, Role string } }
	if _, body := program.Get(g, s.Admin+"/readyz"); json.Unmarshal([]byte(body), &page) != nil {
		return ""
	}
	for _, c := range page.Checks {
		if c.Name == "relay" {
			return c.Role
		}
	}
	return ""
}

func zombie(t *testing.T, help func(g *rig)) {
	g := newRig(t, testenv.DatabaseURL(t), testenv.NATS(t).URL())
	g.writer.pause /= 2
	relays := []*program.Service{g.startRelay(), g.startRelay()}
	g.writer.start()
	for range upTo(2, 6) {
		leads, stands := g.leader(relays)
		g.backlog(3000, 20)
		g.moment(150 * time.Millisecond)
		thaw := testenv.Freeze(t, leads.Cmd.Process.Pid)
		begun, frozen := time.Now(), g.epoch()
		help(g)
		stands.HasRole(stands.Admin, "leader")
		g.flows(20)
		took := time.Since(begun)
		t.Logf("failover after a hang: %s", took.Round(time.Millisecond))
		if took > 15*time.Second {
			t.Errorf("failover after a hang took %s, want less than 15 s", took)
		}
		thaw()
		testenv.Eventually(g, program.Healing, "one leads, in a later session, and the other stands by", func() bool {
			roles := []string{relayRole(g, leads), relayRole(g, stands)}
			slices.Sort(roles)
			return slices.Equal(roles, []string{"leader", "standby"}) && g.epoch() > frozen
		})
	}
	var epochs []string
	for _, r := range relays {
		for _, led := range ledAs.FindAllStringSubmatch(r.Stderr.String(), -1) {
			epochs = append(epochs, led[1])
		}
	}
	if len(epochs) > 1+upTo(2, 6) {
		t.Logf("one that took over lost its session again; the relays led in the epochs %s: %s\n%s", epochs, relays[0], relays[1])
	}
	if each := slices.Compact(slices.Sorted(slices.Values(epochs))); len(each) != len(epochs) || len(epochs) <= upTo(2, 6) {
		t.Errorf("the relays led in the epochs %s, want more than %d, each once", epochs, upTo(2, 6))
	}
	g.relay, _ = g.leader(relays)
	g.check()
	for _, r := range relays {
		if n := strings.Count(r.Stderr.String(), `"level":"ERROR"`); n > 0 {
			t.Errorf("%d errors in the log of %s", n, r)
		}
	}
}

// TestChaosLateMessages: what a relay sent while it led arrives long after another one has taken
// over and has published the same events.
func TestChaosLateMessages(t *testing.T) {
	t.Parallel()
	g := newRig(t, testenv.DatabaseURL(t), testenv.NATS(t).URL())
	proxy, slow := program.Proxied(t, g.nats)
	g.writer.start()
	for range upTo(2, 10) {
		leads := program.StartRelay(t, g.database, slow)
		leads.Ready(leads.Admin)
		stands := g.startRelay()
		stands.HasRole(stands.Admin, "standby")
		poison(t, proxy, toxic{Type: "latency", Stream: "upstream", Attributes: map[string]int64{"latency": 1500}})
		g.backlog(1+g.rand.IntN(200), 20)
		testenv.Eventually(t, program.Healing, "all that could be sent is on its way", func() bool {
			before := g.lastSeq()
			time.Sleep(200 * time.Millisecond)
			return g.lastSeq() == before
		})
		if g.rand.IntN(2) == 0 {
			leads.Kill()
		} else {
			testenv.Freeze(t, leads.Cmd.Process.Pid)
			g.endSession()
		}
		stands.Ready(stands.Admin)
		g.flows(20)
		time.Sleep(2 * time.Second) // the late messages arrive
		proxy.Toxics.ResetToxics(t.Context())
		leads.Kill()
		stands.Kill()
	}
	g.relay = g.startRelay()
	g.check()
}

// TestChaosRelaysComeAndGo starts and kills five relays all the time. Events keep flowing.
func TestChaosRelaysComeAndGo(t *testing.T) {
	t.Parallel()
	g := newRig(t, testenv.DatabaseURL(t), testenv.NATS(t).URL())
	relays := make([]*program.Service, 5)
	for i := range relays {
		relays[i] = g.startRelay()
	}
	g.writer.start()
	g.flows(1)
	last, progress, longest := g.lastSeq(), time.Now(), time.Duration(0)
	for end := time.Now().Add(upTo(5*time.Second, time.Minute)); time.Now().Before(end); {
		i := g.rand.IntN(len(relays))
		relays[i].Kill()
		g.moment(200 * time.Millisecond)
		relays[i] = g.startRelay()
		if now := g.lastSeq(); now > last {
			longest = max(longest, time.Since(progress))
			last, progress = now, time.Now()
		}
	}
	t.Logf("the longest time without progress: %s", longest)
	if longest = max(longest, time.Since(progress)); longest > 5*time.Second {
		t.Errorf("nothing was stored for %s", longest)
	}
	for _, r := range relays[1:] {
		r.Stop()
	}
	g.relay = relays[0]
	g.check()
}

// TestChaosPaused pauses the relay, as an operator does.
func TestChaosPaused(t *testing.T) {
	t.Parallel()
	g := calmRig(t)
	g.exec(`update pgjet.leader set paused_at = now(), paused_by = 'ann', pause_reason = 'test'`)
	g.says("paused")
	g.exec(`update pgjet.leader set paused_at = null, paused_by = null, pause_reason = null`)
	g.flows(20)
	g.check()
}

// TestChaosHalted: another program writes to the stream, and an operator has to decide.
func TestChaosHalted(t *testing.T) {
	t.Parallel()
	g := calmRig(t)
	if _, err := g.js.Publish(t.Context(), "events.00.note.made", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	g.says("halted: ")
}
