package check_test

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"
)

// manifests are the objects of all files, by kind and name.
type manifests map[string]any

// kinds are the types of what may stand in the files.
var kinds = map[metav1.TypeMeta]func() any{
	{APIVersion: "apps/v1", Kind: "Deployment"}:            func() any { return new(appsv1.Deployment) },
	{APIVersion: "policy/v1", Kind: "PodDisruptionBudget"}: func() any { return new(policyv1.PodDisruptionBudget) },
	{APIVersion: "v1", Kind: "ConfigMap"}:                  func() any { return new(corev1.ConfigMap) },
	{APIVersion: "v1", Kind: "Secret"}:                     func() any { return new(corev1.Secret) },
	{APIVersion: "v1", Kind: "Service"}:                    func() any { return new(corev1.Service) },
}

// read decodes all files strictly: a field that Kubernetes does not know, or that is there twice, is an error.
func read(t *testing.T) manifests {
	t.Helper()
	files, err := filepath.Glob("../*.yaml")
	require.NoError(t, err)
	all := manifests{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, document := range bytes.Split(text, []byte("\n---\n")) {
			var head struct {
				metav1.TypeMeta   `json:",inline"`
				metav1.ObjectMeta `json:"metadata"`
			}
			require.NoError(t, yaml.Unmarshal(document, &head), file)
			require.Contains(t, kinds, head.TypeMeta, file)
			object := kinds[head.TypeMeta]()
			require.NoError(t, yaml.UnmarshalStrict(document, object), file)
			require.Equal(t, map[string]string{"app.kubernetes.io/name": "pgmoor"}, head.Labels, file)
			id := head.Kind + " " + head.Name
			require.NotContains(t, all, id)
			all[id] = object
		}
	}
	return all
}

func (m manifests) deployment() *appsv1.Deployment {
	return m["Deployment pgmoor"].(*appsv1.Deployment)
}

func (m manifests) container(t *testing.T) corev1.Container {
	containers := m.deployment().Spec.Template.Spec.Containers
	require.Len(t, containers, 1)
	return containers[0]
}

func TestEveryObjectIsThere(t *testing.T) {
	require.Equal(t, []string{
		"ConfigMap pgmoor", "Deployment pgmoor", "PodDisruptionBudget pgmoor", "Secret pgmoor", "Service pgmoor", "Service pgmoor-pods",
	}, slices.Sorted(maps.Keys(read(t))))
}

func TestSelectorsAndPortsMeet(t *testing.T) {
	m := read(t)
	spec := m.deployment().Spec
	require.Equal(t, spec.Template.Labels, spec.Selector.MatchLabels)
	require.Equal(t, spec.Template.Labels, m["PodDisruptionBudget pgmoor"].(*policyv1.PodDisruptionBudget).Spec.Selector.MatchLabels)
	c := m.container(t)
	ports := map[string]int32{}
	for _, p := range c.Ports {
		ports[p.Name] = p.ContainerPort
		require.Contains(t, strings.Join(c.Args, " "), fmt.Sprintf("=:%d", p.ContainerPort))
	}
	has := func(p intstr.IntOrString) { require.Contains(t, ports, p.StrVal) }
	for _, name := range []string{"pgmoor", "pgmoor-pods"} {
		service := m["Service "+name].(*corev1.Service)
		require.Equal(t, spec.Template.Labels, service.Spec.Selector)
		for _, p := range service.Spec.Ports {
			has(p.TargetPort)
		}
	}
	require.Equal(t, corev1.ClusterIPNone, m["Service pgmoor-pods"].(*corev1.Service).Spec.ClusterIP)
	has(c.ReadinessProbe.HTTPGet.Port)
	has(c.LivenessProbe.HTTPGet.Port)
}

func TestWhatThePodNeedsIsGiven(t *testing.T) {
	m := read(t)
	c := m.container(t)
	secret, config := m["Secret pgmoor"].(*corev1.Secret), m["ConfigMap pgmoor"].(*corev1.ConfigMap)
	for _, e := range c.Env {
		require.Equal(t, secret.Name, e.ValueFrom.SecretKeyRef.Name)
		require.Contains(t, secret.StringData, e.ValueFrom.SecretKeyRef.Key)
	}
	require.Equal(t, config.Name, c.EnvFrom[0].ConfigMapRef.Name)
	volume := m.deployment().Spec.Template.Spec.Volumes[0]
	require.Equal(t, c.VolumeMounts[0].Name, volume.Name)
	require.Equal(t, secret.Name, volume.Secret.SecretName)
	for _, item := range volume.Secret.Items {
		require.Contains(t, secret.StringData, item.Key)
	}
	for _, name := range variable.FindAllStringSubmatch(strings.Join(c.Args, " "), -1) {
		require.Contains(t, config.Data, name[1])
	}
}

// variable is what Kubernetes replaces in arguments.
var variable = regexp.MustCompile(`\$\((\w+)\)`)

func TestThePodHasTheTimeToDrain(t *testing.T) {
	m := read(t)
	c := m.container(t)
	total := time.Duration(c.Lifecycle.PreStop.Sleep.Seconds) * time.Second
	for _, flag := range []string{"-drain-grace=", "-drain-timeout="} {
		i := slices.IndexFunc(c.Args, func(a string) bool { return strings.HasPrefix(a, flag) })
		require.GreaterOrEqual(t, i, 0, flag)
		d, err := time.ParseDuration(strings.TrimPrefix(c.Args[i], flag))
		require.NoError(t, err)
		total += d
	}
	limit := time.Duration(*m.deployment().Spec.Template.Spec.TerminationGracePeriodSeconds) * time.Second
	require.Greater(t, limit, total)
}

// TestTheDaemonTakesTheArguments starts it with them: it gets as far as listening.
func TestTheDaemonTakesTheArguments(t *testing.T) {
	m := read(t)
	config, secret := m["ConfigMap pgmoor"].(*corev1.ConfigMap), m["Secret pgmoor"].(*corev1.Secret)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "userlist.txt"), []byte(secret.StringData["userlist.txt"]), 0o600))
	args := []string{"-C", "../..", "run", "./standalone"}
	for _, a := range m.container(t).Args {
		a = variable.ReplaceAllStringFunc(a, func(s string) string { return config.Data[variable.FindStringSubmatch(s)[1]] })
		a = strings.ReplaceAll(a, "/etc/pgmoor", dir)
		args = append(args, strings.ReplaceAll(a, "=:", "=192.0.2.1:")) // an address that no machine has
	}
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "PGMOOR_UPSTREAM="+secret.StringData["upstream"])
	out, err := cmd.CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "pgmoor: -listen 192.0.2.1:6432: ", "the flags are not what stops it")
}
