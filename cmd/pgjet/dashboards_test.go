package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// A dashboard is the part of a Grafana dashboard that the tests check.
type dashboard struct {
	UID, Title string
	Panels     []struct {
		ID      int
		Type    string
		Title   string
		GridPos struct{ X, Y, W, H int }
		Targets []struct{ Expr, RefID string }
	}
}

func readDashboards(t *testing.T) map[string]dashboard {
	t.Helper()
	paths, err := filepath.Glob(root + "deploy/grafana/*.json")
	if err != nil || len(paths) < 3 {
		t.Fatalf("%q, %v", paths, err)
	}
	all := make(map[string]dashboard)
	for _, path := range paths {
		var d dashboard
		if err := json.Unmarshal([]byte(read(t, strings.TrimPrefix(path, root))), &d); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		all[filepath.Base(path)] = d
	}
	return all
}

// expressions returns the queries of the panels of all dashboards, with values for the variables.
func expressions(t *testing.T) (all []string) {
	t.Helper()
	values := strings.NewReplacer("$__rate_interval", "5m", "$consumer", "directory")
	for _, d := range readDashboards(t) {
		for _, p := range d.Panels {
			for _, target := range p.Targets {
				all = append(all, values.Replace(target.Expr))
			}
		}
	}
	return all
}

// TestDashboards: panels of deploy/grafana do not overlap, and query metrics that are exported.
func TestDashboards(t *testing.T) {
	t.Parallel()
	listed := listedMetrics(t)
	shown := ""
	for file, d := range readDashboards(t) {
		taken := make(map[[2]int]string)
		ids := make(map[int]bool)
		for _, p := range d.Panels {
			if p.Title == "" || ids[p.ID] || p.Type != "row" && len(p.Targets) == 0 {
				t.Errorf("%s: panel %d, %q, has no title, asks nothing, or has the id of another", file, p.ID, p.Title)
			}
			ids[p.ID] = true
			for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
				for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
					if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
						t.Fatalf("%s: %q covers %q, or is too wide", file, p.Title, other)
					}
					taken[[2]int{x, y}] = p.Title
				}
			}
			for _, target := range p.Targets {
				shown += target.Expr + "\n"
				for _, name := range named.FindAllString(target.Expr, -1) {
					if !isExported(listed, name) {
						t.Errorf("%s: %q asks for %s, which nobody exports", file, p.Title, name)
					}
				}
			}
		}
	}
	for name, kind := range listed {
		if kind == "histogram" && strings.HasPrefix(name, "pgjet_") && !strings.Contains(shown, name+"_bucket") {
			t.Errorf("no dashboard shows %s", name)
		}
	}
}

// TestDashboardsAskInPromQL: Prometheus can parse the queries of the panels.
func TestDashboardsAskInPromQL(t *testing.T) {
	t.Parallel()
	var rules []map[string]string
	for _, e := range expressions(t) {
		rules = append(rules, map[string]string{"record": "panel", "expr": e})
	}
	text, err := yaml.Marshal(map[string]any{"groups": []any{map[string]any{"name": "panels", "rules": rules}}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "rules.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), promtool(t), "check", "rules", "--lint=none", file).CombinedOutput(); err != nil {
		t.Errorf("promtool check rules: %v\n%s", err, out)
	}
}

// TestComposeIsWatched: in the profile metrics Prometheus scrapes each long-running process, with
// the alerts, and Grafana shows each dashboard.
func TestComposeIsWatched(t *testing.T) {
	t.Parallel()
	c := readComposition(t)
	var config struct {
		RuleFiles     []string `yaml:"rule_files"`
		ScrapeConfigs []struct {
			JobName       string `yaml:"job_name"`
			StaticConfigs []struct {
				Targets []string `yaml:"targets"`
			} `yaml:"static_configs"`
		} `yaml:"scrape_configs"`
	}
	if err := yaml.Unmarshal([]byte(c.config(t, "prometheus")), &config); err != nil {
		t.Fatal(err)
	}
	var want []string
	for name, lasting := range ownServices {
		if lasting {
			_, port, _ := strings.Cut(c.Services[name].Environment["PGJET_ADMIN_ADDR"], ":")
			want = append(want, name+":"+port)
		}
	}
	got := config.ScrapeConfigs[0].StaticConfigs[0].Targets
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) || !strings.HasPrefix(config.ScrapeConfigs[0].JobName, "pgjet") {
		t.Errorf("Prometheus scrapes %q as %s, want %q", got, config.ScrapeConfigs[0].JobName, want)
	}
	mounted := func(service string) string {
		all := ""
		for _, m := range c.Services[service].Configs {
			all += m.Target + "\n"
			if c.config(t, m.Source) == "" {
				t.Errorf("%s mounts %s, which is empty", service, m.Source)
			}
		}
		return all
	}
	if m := mounted("prometheus"); len(config.RuleFiles) != 1 || !strings.Contains(m, "/etc/prometheus/"+config.RuleFiles[0]+"\n") {
		t.Errorf("Prometheus has %q, and reads %q", m, config.RuleFiles)
	}
	grafana := mounted("grafana")
	for file := range readDashboards(t) {
		if !strings.Contains(grafana, "/etc/grafana/dashboards/"+file+"\n") {
			t.Errorf("Grafana does not have %s", file)
		}
	}
	for _, name := range []string{"prometheus", "grafana"} {
		if !slices.Equal(c.Services[name].Profiles, []string{"metrics"}) {
			t.Errorf("%s starts without --profile metrics", name)
		}
	}
}
