// Package kubernetes has only manifests; this test checks them against the types of
// Kubernetes' API.
package kubernetes

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// An object is one document of a manifest.
type object struct {
	file string
	of   any
	meta metav1.ObjectMeta
}

// decode reads all manifests. An unknown or duplicate field fails the test.
func decode(t *testing.T) (all []object) {
	t.Helper()
	var files []string
	for _, pattern := range []string{"*.yaml", "secrets/*.yaml"} {
		some, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, some...)
	}
	if len(files) < 6 {
		t.Fatalf("there are %q", files)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for document := range bytes.SplitSeq(text, []byte("\n---\n")) {
			all = append(all, decodeOne(t, file, document))
		}
	}
	return all
}

func decodeOne(t *testing.T, file string, document []byte) object {
	t.Helper()
	var kind metav1.TypeMeta
	if err := yaml.Unmarshal(document, &kind); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	made := map[string]func() (any, *metav1.ObjectMeta){
		"v1 Namespace":                       func() (any, *metav1.ObjectMeta) { o := new(corev1.Namespace); return o, &o.ObjectMeta },
		"v1 Secret":                          func() (any, *metav1.ObjectMeta) { o := new(corev1.Secret); return o, &o.ObjectMeta },
		"v1 Service":                         func() (any, *metav1.ObjectMeta) { o := new(corev1.Service); return o, &o.ObjectMeta },
		"apps/v1 Deployment":                 func() (any, *metav1.ObjectMeta) { o := new(appsv1.Deployment); return o, &o.ObjectMeta },
		"batch/v1 Job":                       func() (any, *metav1.ObjectMeta) { o := new(batchv1.Job); return o, &o.ObjectMeta },
		"policy/v1 PodDisruptionBudget":      func() (any, *metav1.ObjectMeta) { o := new(policyv1.PodDisruptionBudget); return o, &o.ObjectMeta },
		"networking.k8s.io/v1 NetworkPolicy": func() (any, *metav1.ObjectMeta) { o := new(networkingv1.NetworkPolicy); return o, &o.ObjectMeta },
	}[kind.APIVersion+" "+kind.Kind]
	if made == nil {
		t.Fatalf("%s: %s %s is not known here", file, kind.APIVersion, kind.Kind)
	}
	o, meta := made()
	if err := yaml.UnmarshalStrict(document, o); err != nil {
		t.Fatalf("%s: %s: %v", file, kind.Kind, err)
	}
	return object{file, o, *meta}
}

// pods returns the pods of Deployments and Jobs, by name.
func pods(all []object) map[string]corev1.PodTemplateSpec {
	found := make(map[string]corev1.PodTemplateSpec)
	for _, o := range all {
		switch of := o.of.(type) {
		case *appsv1.Deployment:
			found[o.meta.Name] = of.Spec.Template
		case *batchv1.Job:
			found[o.meta.Name] = of.Spec.Template
		}
	}
	return found
}

// TestManifests: the API accepts all manifests, they are in one namespace, and everything
// that they select, mount and name exists.
func TestManifests(t *testing.T) {
	all := decode(t)
	secrets := map[string]corev1.Secret{"users-key": {StringData: map[string]string{"users.jwk": ""}}} // pgjet users key makes it
	for _, o := range all {
		if s, ok := o.of.(*corev1.Secret); ok {
			secrets[o.meta.Name] = *s
		}
		if _, ok := o.of.(*corev1.Namespace); !ok && o.meta.Namespace != "pgjet" {
			t.Errorf("%s: %s is in namespace %q", o.file, o.meta.Name, o.meta.Namespace)
		}
	}
	for name, pod := range pods(all) {
		checkPod(t, name, pod, secrets)
	}
	for _, o := range all {
		switch of := o.of.(type) {
		case *appsv1.Deployment:
			selects(t, o, of.Spec.Selector, all)
			checkProbes(t, o.meta.Name, of.Spec.Template.Spec.Containers[0])
			if *of.Spec.Replicas < 2 || !budgeted(all, o.meta.Name) {
				t.Errorf("%s: a disruption may leave no process", o.meta.Name)
			}
		case *corev1.Service:
			selects(t, o, &metav1.LabelSelector{MatchLabels: of.Spec.Selector}, all)
		case *policyv1.PodDisruptionBudget:
			selects(t, o, of.Spec.Selector, all)
		case *networkingv1.NetworkPolicy:
			if len(of.Spec.PodSelector.MatchLabels)+len(of.Spec.PodSelector.MatchExpressions) > 0 {
				selects(t, o, &of.Spec.PodSelector, all)
			}
		}
	}
}

// checkPod checks a pod's rights and mounts.
func checkPod(t *testing.T, name string, pod corev1.PodTemplateSpec, secrets map[string]corev1.Secret) {
	t.Helper()
	spec, c := pod.Spec, pod.Spec.Containers[0]
	s, of := c.SecurityContext, spec.SecurityContext
	if s == nil || of == nil || !*of.RunAsNonRoot || of.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault ||
		!*s.ReadOnlyRootFilesystem || *s.AllowPrivilegeEscalation || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) {
		t.Errorf("%s may do more than it has to: %+v %+v", name, of, s)
	}
	if spec.AutomountServiceAccountToken == nil || *spec.AutomountServiceAccountToken {
		t.Errorf("%s has a token of the API, which it does not need", name)
	}
	if c.Resources.Limits.Memory().IsZero() || c.Resources.Requests.Cpu().IsZero() || c.Resources.Requests.Memory().IsZero() {
		t.Errorf("%s has no limit of memory, or no requests", name)
	}
	mounted := make(map[string]string) // by name of the volume
	for _, m := range c.VolumeMounts {
		mounted[m.Name] = m.MountPath
		if !m.ReadOnly {
			t.Errorf("%s may write to %s", name, m.MountPath)
		}
	}
	files := make(map[string]bool)
	for _, v := range spec.Volumes {
		secret, there := secrets[v.Secret.SecretName]
		if !there || mounted[v.Name] == "" {
			t.Errorf("%s has the volume %s of secret %s, which is not there, or not mounted", name, v.Name, v.Secret.SecretName)
		}
		for key := range secret.StringData {
			files[mounted[v.Name]+"/"+key] = true
		}
	}
	for _, e := range c.Env {
		if filepath.IsAbs(e.Value) && filepath.Dir(e.Value) != "/" && !files[e.Value] {
			t.Errorf("%s: %s is %s, and no secret has that", name, e.Name, e.Value)
		}
		if e.Value != "" && (bytes.Contains([]byte(e.Value), []byte("://"))) {
			t.Errorf("%s: the URL in %s belongs into a secret", name, e.Name)
		}
	}
}

// checkProbes checks that the liveness of a process does not depend on its servers.
func checkProbes(t *testing.T, name string, c corev1.Container) {
	t.Helper()
	for what, want := range map[string]struct {
		probe *corev1.Probe
		path  string
	}{"startup": {c.StartupProbe, "/livez"}, "liveness": {c.LivenessProbe, "/livez"}, "readiness": {c.ReadinessProbe, "/readyz"}} {
		if want.probe == nil || want.probe.HTTPGet == nil || want.probe.HTTPGet.Path != want.path || want.probe.HTTPGet.Port.StrVal != "admin" {
			t.Errorf("%s: the %s probe is %+v, want %s of port admin", name, what, want.probe, want.path)
		}
	}
}

// selects checks that a selector selects a pod, and that named ports exist.
func selects(t *testing.T, o object, s *metav1.LabelSelector, all []object) {
	t.Helper()
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		t.Fatalf("%s: %v", o.file, err)
	}
	n := 0
	for _, pod := range pods(all) {
		if !selector.Matches(labels(pod.Labels)) {
			continue
		}
		n++
		var ports []string
		for _, p := range pod.Spec.Containers[0].Ports {
			ports = append(ports, p.Name)
		}
		for _, want := range wanted(o) {
			if !slices.Contains(ports, want) {
				t.Errorf("%s: %s leads to port %s of a pod that has %q", o.file, o.meta.Name, want, ports)
			}
		}
	}
	if n == 0 {
		t.Errorf("%s: %s selects nothing", o.file, o.meta.Name)
	}
}

// labels are those of a pod, in the form that a selector reads.
type labels map[string]string

func (l labels) Has(label string) bool              { _, ok := l[label]; return ok }
func (l labels) Get(label string) string            { return l[label] }
func (l labels) Lookup(label string) (string, bool) { v, ok := l[label]; return v, ok }

// wanted returns the names of the ports of pods that an object uses.
func wanted(o object) (names []string) {
	switch of := o.of.(type) {
	case *corev1.Service:
		for _, p := range of.Spec.Ports {
			names = append(names, p.TargetPort.StrVal)
		}
	case *networkingv1.NetworkPolicy:
		for _, rule := range of.Spec.Ingress {
			for _, p := range rule.Ports {
				names = append(names, p.Port.StrVal)
			}
		}
	}
	return names
}

func budgeted(all []object, name string) bool {
	return slices.ContainsFunc(all, func(o object) bool {
		b, ok := o.of.(*policyv1.PodDisruptionBudget)
		return ok && b.Spec.Selector.MatchLabels["app.kubernetes.io/name"] == name
	})
}
