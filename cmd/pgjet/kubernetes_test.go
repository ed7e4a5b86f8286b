package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/pgjet/pgjet/internal/health"
	"github.com/pgjet/pgjet/internal/supervisor"
)

// A workload is the part of a Deployment or a Job that refers to the program. The module in
// deploy/kubernetes checks the rest.
type workload struct {
	Kind     string
	Metadata struct{ Name string }
	Spec     struct {
		Template struct {
			Spec struct {
				Grace    int `yaml:"terminationGracePeriodSeconds"`
				Security struct {
					NonRoot bool `yaml:"runAsNonRoot"`
					Group   int  `yaml:"fsGroup"`
				} `yaml:"securityContext"`
				Containers []struct {
					Args  []string
					Env   []struct{ Name, Value string }
					Ports []struct {
						Name          string
						ContainerPort int `yaml:"containerPort"`
					}
					Startup   namedProbe `yaml:"startupProbe"`
					Liveness  namedProbe `yaml:"livenessProbe"`
					Readiness namedProbe `yaml:"readinessProbe"`
				}
			}
		}
	}
}

type namedProbe struct {
	Get struct{ Path, Port string } `yaml:"httpGet"`
}

// workloads returns the Deployments and Jobs of deploy/kubernetes.
func workloads(t *testing.T) (all []workload) {
	t.Helper()
	paths, err := filepath.Glob(root + "deploy/kubernetes/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for documents := yaml.NewDecoder(bytes.NewReader(text)); ; {
			var w workload
			err := documents.Decode(&w)
			if errors.Is(err, io.EOF) {
				break
			}
			if w.Kind != "Deployment" && w.Kind != "Job" {
				continue
			}
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			all = append(all, w)
		}
	}
	return all
}

// TestKubernetesManifests: each command, flag, port and path of the manifests exists, and every
// process of compose.yaml has one, except the stand-ins.
func TestKubernetesManifests(t *testing.T) {
	t.Parallel()
	var names []string
	pages := (&health.Health{Metrics: http.NotFoundHandler()}).Handler()
	for _, w := range workloads(t) {
		names = append(names, w.Metadata.Name)
		pod, c := w.Spec.Template.Spec, w.Spec.Template.Spec.Containers[0]
		if user := fmt.Sprintf("%d:%[1]d", pod.Security.Group); !pod.Security.NonRoot || !strings.Contains(read(t, "Dockerfile"), "\nUSER "+user+"\n") {
			t.Errorf("%s: the pod's group is %d, non-root %t; the image has another user", w.Metadata.Name, pod.Security.Group, pod.Security.NonRoot)
		}
		flags, values := flagsOf(t, w.Metadata.Name, c.Args), make(map[string]string)
		for _, v := range c.Env {
			name := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(v.Name, "PGJET_"), "_", "-"))
			if secret, ok := strings.CutSuffix(name, "-file"); ok && slices.Contains(secrets, secret) {
				name = secret
			}
			f := flags.Lookup(name)
			if f == nil {
				t.Errorf("%s: pgjet %v knows no %s", w.Metadata.Name, c.Args, v.Name)
			} else if err := f.Value.Set(v.Value); err != nil && v.Value != "" {
				t.Errorf("%s: %s: %v", w.Metadata.Name, v.Name, err)
			}
			values[name] = v.Value
		}
		if w.Kind == "Job" {
			continue
		}
		for _, p := range c.Ports {
			if flag := map[string]string{"admin": "admin-addr", "api": "addr"}[p.Name]; values[flag] != ":"+strconv.Itoa(p.ContainerPort) {
				t.Errorf("%s: port %s is %d, and --%s %s", w.Metadata.Name, p.Name, p.ContainerPort, flag, values[flag])
			}
		}
		if flags.Lookup("addr") != nil && len(c.Ports) != 2 {
			t.Errorf("%s serves an API, and has the ports %v", w.Metadata.Name, c.Ports)
		}
		for _, p := range []namedProbe{c.Startup, c.Liveness, c.Readiness} {
			if status := statusOf(t, pages, p.Get.Path); status == http.StatusNotFound || p.Get.Port != "admin" {
				t.Errorf("%s: a probe asks port %s for %s: %d", w.Metadata.Name, p.Get.Port, p.Get.Path, status)
			}
		}
		delay, _ := time.ParseDuration(values["stop-delay"])
		if grace := time.Duration(pod.Grace) * time.Second; grace < delay+supervisor.Grace+5*time.Second {
			t.Errorf("%s: the grace period of %s is too short", w.Metadata.Name, grace)
		}
	}
	for name := range ownServices {
		if !slices.Contains(names, name) && !slices.Contains([]string{"key", "operator", "profiles", "billing"}, name) {
			t.Errorf("deploy/kubernetes has no %s", name)
		}
	}
}

// statusOf returns the status with which h answers.
func statusOf(t *testing.T, h http.Handler, path string) int {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
	return w.Code
}
