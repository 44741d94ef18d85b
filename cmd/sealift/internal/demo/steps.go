package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/cmd/sealift/internal/lab"
	"github.com/sealift/sealift/cmd/sealift/internal/vm"
)

// What the agent says on the console; see cmd/sealift-agent.
var (
	sawInstalled = regexp.MustCompile(`^sealift: \[.*\] installed\b`)
	sawAttested  = regexp.MustCompile(`^sealift: \[.*\] attested\b`)
	sawRefused   = regexp.MustCompile(`^sealift: \[.*\] refused: `)
	sawState     = regexp.MustCompile(`^sealift: \[.*\] state (created|opened)\b`)
	sawCapped    = regexp.MustCompile(`^sealift: \[.*\] capped\b`)
	sawVerdict   = regexp.MustCompile(`^sealift: \[.*\] (attested\b|refused: )`)
	sawDenied    = regexp.MustCompile(`Access Denied|Security Violation`)
)

// Limits of one power cycle. They only end a run that hangs.
const (
	bootLimit    = 5 * time.Minute
	installLimit = 10 * time.Minute
)

// powerOn switches a box on in a namespace.
func (d *Demo) powerOn(ctx context.Context, b *vm.Box, ns *lab.Namespace, tap string, p vm.Power) (*vm.Run, error) {
	p.Tap, p.Command = tap, ns.Command
	return b.Start(ctx, d.accel, p)
}

// install network-boots the blank box on the factory line.
func (d *Demo) install(ctx context.Context) (string, error) {
	m, took, err := d.installBox(ctx, d.box)
	if err != nil {
		return "", err
	}
	d.machine = m
	return fmt.Sprintf("machine %s enrolled, installed after %.1f s", m.ID.Short(), took.Seconds()), nil
}

// installBox network-boots a blank box on the factory line, and returns it as
// the service knows it then.
func (d *Demo) installBox(ctx context.Context, b *vm.Box) (api.Machine, time.Duration, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, installLimit, errors.New("the install took too long"))
	defer cancel()
	run, err := d.powerOn(ctx, b, d.hq, "line1", vm.Power{Label: "factory"})
	if err != nil {
		return api.Machine{}, 0, err
	}
	defer run.Kill()
	_, took, err := run.WaitFor(ctx, sawInstalled)
	if err != nil {
		return api.Machine{}, 0, fmt.Errorf("%w\nserve:\n%s", err, tail(d.serve.log, 15))
	}
	if err := run.Wait(ctx); err != nil {
		return api.Machine{}, 0, err
	}
	all, err := d.machines(ctx)
	if err != nil {
		return api.Machine{}, 0, err
	}
	theirs := slices.DeleteFunc(slices.Clone(all), func(m api.Machine) bool { return m.Serial != b.Serial })
	if len(theirs) != 1 || theirs[0].State != "enrolled" || theirs[0].DiskGUID == "" {
		return api.Machine{}, 0, fmt.Errorf("after the install the service knows %+v, want one enrolled machine with serial %s and its disk", all, b.Serial)
	}
	return theirs[0], took, nil
}

// isolated checks that the store reaches the service and the cluster, and
// nothing else of headquarters.
func (d *Demo) isolated(ctx context.Context) error {
	try := func(url string) error {
		return d.store.Command(ctx, "curl", "-sk", "-o", "/dev/null", "--max-time", "3", url).Run()
	}
	for _, url := range []string{"https://" + nodeAPI, "https://" + hqIP + ":" + apiPort} {
		if err := try(url); err != nil {
			return fmt.Errorf("the store cannot reach %s: %w", url, err)
		}
	}
	for _, url := range []string{"http://" + factoryIP + "/", "http://" + hqIP + "/", "https://" + hqIP + ":8444/"} {
		var exit *exec.ExitError
		if err := try(url); !errors.As(err, &exit) {
			return fmt.Errorf("the store reaches %s (%v), want no way there", url, err)
		}
	}
	return nil
}

const podName = "hello"

// podYAML is a pod of the preloaded image, bound to one node because this
// cluster runs no scheduler. It counts its starts in a file on the node, and
// stays the node's however long that one is off: a store is no place to be
// evicted from.
func podYAML(node string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 1
  tolerations:
  - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute}
  - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute}
  automountServiceAccountToken: true
  containers:
  - name: hello
    image: docker.io/sealift/hello:v1
    imagePullPolicy: Never
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, hostPath: {path: /var/lib/demo, type: DirectoryOrCreate}}]
`, podName, node)
}

// firstBootInStore boots the installed box where it is going to work.
func (d *Demo) firstBootInStore(ctx context.Context) (string, error) {
	if err := d.isolated(ctx); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, bootLimit, errors.New("the boot took too long"))
	defer cancel()
	// The box stays on for the next step.
	run, err := d.powerOn(context.WithoutCancel(ctx), d.box, d.store, "till1", vm.Power{Label: "store-first"})
	if err != nil {
		return "", err
	}
	d.running = run
	attested, state, err := d.released(ctx, run)
	if err != nil {
		return "", err
	}
	if !strings.Contains(state, "created") {
		return "", fmt.Errorf("on the first boot the agent says %q, want that the state was created", state)
	}
	node, err := d.nodeReady(ctx, run, d.machine.NodeName, "")
	if err != nil {
		return "", err
	}
	ready := time.Since(run.Started)
	if err := d.cluster.apply(ctx, podYAML(d.machine.NodeName)); err != nil {
		return "", err
	}
	if err := d.podRunning(ctx, run, ""); err != nil {
		return "", err
	}
	d.bootID = node.Status.NodeInfo.BootID
	d.starts = 1
	d.firstBoot = []Timing{
		{"power-on to attested", attested, 20 * time.Second},
		{"power-on to node Ready", ready, 35 * time.Second},
		{"power-on to pod Running", time.Since(run.Started), 45 * time.Second},
	}
	return fmt.Sprintf("attested %.1f s, Ready %.1f s, pod Running %.1f s", attested.Seconds(), ready.Seconds(), d.firstBoot[2].Took.Seconds()), nil
}

// released waits until a box has its secrets and has capped its boot.
func (d *Demo) released(ctx context.Context, run *vm.Run) (attested time.Duration, state string, err error) {
	line, attested, err := run.WaitFor(ctx, sawVerdict)
	if err == nil && !sawAttested.MatchString(line) {
		err = fmt.Errorf("the box was refused:\n    %s\n%s", strings.Join(run.Lines(sawRefused), "\n    "), run.Tail(10))
	}
	if err != nil {
		return 0, "", fmt.Errorf("%w\nserve:\n%s", err, tail(d.serve.log, 15))
	}
	if state, _, err = run.WaitFor(ctx, sawState); err != nil {
		return 0, "", err
	}
	_, _, err = run.WaitFor(ctx, sawCapped)
	return attested, state, err
}

// node is a Kubernetes node, as far as the demo looks into it.
type node struct {
	Status struct {
		Conditions []struct{ Type, Status string }
		NodeInfo   struct{ BootID, KubeletVersion, OSImage string }
	}
}

// pollPause is what lies between two looks at the cluster. Each starts a client
// on the CPUs that the boxes run on.
const pollPause = 500 * time.Millisecond

// poll calls f until it says that it is done, the box goes off or ctx ends.
func (d *Demo) poll(ctx context.Context, run *vm.Run, what string, f func() (bool, string)) error {
	var last string
	for {
		done, now := f()
		if done {
			return nil
		}
		last = now
		if run.Off() {
			return fmt.Errorf("wait for %s: %w; last seen: %s\n%s", what, vm.ErrEnded, last, run.Tail(30))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w; last seen: %s\n%s", what, context.Cause(ctx), last, run.Tail(30))
		case <-time.After(pollPause):
		}
	}
}

// see watches objects of the cluster until f says that one is as it should be,
// the box goes off or ctx ends.
func (d *Demo) see(ctx context.Context, run *vm.Run, what string, f func(json.RawMessage) (bool, string), get ...string) error {
	watching, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		defer stop()
		_ = run.Wait(watching) // how the box ended is told below
	}()
	last := "nothing"
	for {
		err := d.cluster.watch(watching, func(object json.RawMessage) (done bool) {
			done, last = f(object)
			return done
		}, get...)
		switch {
		case err == nil:
			return nil
		case run.Off():
			return fmt.Errorf("wait for %s: %w; last seen: %s\n%s", what, vm.ErrEnded, last, run.Tail(30))
		case ctx.Err() != nil:
			return fmt.Errorf("wait for %s: %w; last seen: %s\n%s", what, context.Cause(ctx), last, run.Tail(30))
		}
		// The connection broke; what was missed is in the next one's beginning.
		last = err.Error()
		select {
		case <-watching.Done():
		case <-time.After(pollPause):
		}
	}
}

// nodeReady waits until a node is Ready in another boot than the one before.
func (d *Demo) nodeReady(ctx context.Context, run *vm.Run, name, before string) (node, error) {
	var n node
	err := d.see(ctx, run, "node "+name+" Ready", func(object json.RawMessage) (bool, string) {
		n = node{}
		if err := json.Unmarshal(object, &n); err != nil {
			return false, err.Error()
		}
		for _, c := range n.Status.Conditions {
			if c.Type == "Ready" {
				return c.Status == "True" && n.Status.NodeInfo.BootID != before, fmt.Sprintf("Ready=%s in boot %s", c.Status, n.Status.NodeInfo.BootID)
			}
		}
		return false, "no Ready condition"
	}, "nodes", "--field-selector", "metadata.name="+name)
	return n, err
}

// pod is a Kubernetes pod, as far as the demo looks into it.
type pod struct {
	Status struct {
		Phase             string
		ContainerStatuses []struct {
			Ready bool
			State json.RawMessage
		}
	}
}

// podRunning waits until the pod runs and its log has a line that contains want.
func (d *Demo) podRunning(ctx context.Context, run *vm.Run, want string) error {
	err := d.see(ctx, run, "pod Running", func(object json.RawMessage) (bool, string) {
		var p pod
		if err := json.Unmarshal(object, &p); err != nil {
			return false, err.Error()
		}
		if len(p.Status.ContainerStatuses) != 1 {
			return false, p.Status.Phase
		}
		c := p.Status.ContainerStatuses[0]
		return p.Status.Phase == "Running" && c.Ready, fmt.Sprintf("%s, ready %t, %s", p.Status.Phase, c.Ready, c.State)
	}, "pods", "--field-selector", "metadata.name="+podName)
	if err != nil || want == "" {
		return err
	}
	return d.poll(ctx, run, "the pod's log", func() (bool, string) {
		log, err := d.cluster.kubectl(ctx, "logs", podName)
		if err != nil {
			return false, err.Error()
		}
		return strings.Contains(log, want), strings.TrimSpace(log)
	})
}

// cluster1 looks at the running node as a person would.
func (d *Demo) cluster1(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, bootLimit, errors.New("the cluster took too long"))
	defer cancel()
	if err := d.podRunning(ctx, d.running, "start 1\n"); err != nil {
		return "", err
	}
	var tokens string
	if err := d.poll(ctx, d.running, "the join token to be gone", func() (bool, string) {
		out, err := d.cluster.kubectl(ctx, "get", "secrets", "-n", "kube-system", "--field-selector", "type=bootstrap.kubernetes.io/token", "-o", "name")
		if err != nil {
			return false, err.Error()
		}
		tokens = strings.TrimSpace(out)
		return tokens == "", tokens
	}); err != nil {
		return "", err
	}
	out, err := d.cluster.kubectl(ctx, "get", "nodes", "-o", "custom-columns=N:.metadata.name,V:.status.nodeInfo.kubeletVersion", "--no-headers")
	if err != nil {
		return "", err
	}
	nodes := strings.Fields(out)
	if len(nodes) != 2 || nodes[0] != d.machine.NodeName {
		return "", fmt.Errorf("kubectl get nodes shows %q, want the one node %s", out, d.machine.NodeName)
	}
	all, err := d.machines(ctx)
	if err != nil {
		return "", err
	}
	if len(all) != 1 || !all[0].Joined {
		return "", fmt.Errorf("the service does not know that the node joined: %+v", all)
	}
	d.unplug()
	return fmt.Sprintf("%s %s", nodes[0], nodes[1]), nil
}

// unplug cuts the power of the box that is on.
func (d *Demo) unplug() {
	if d.running != nil {
		d.running.Kill()
		d.running = nil
	}
}

// bootAccepted boots the box in the store and waits until it has its secrets.
func (d *Demo) bootAccepted(ctx context.Context, p vm.Power) (*vm.Run, time.Duration, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, bootLimit, errors.New("the boot took too long"))
	defer cancel()
	run, err := d.powerOn(context.WithoutCancel(ctx), d.box, d.store, "till1", p)
	if err != nil {
		return nil, 0, err
	}
	attested, state, err := d.released(ctx, run)
	if err == nil && !strings.Contains(state, "opened") {
		err = fmt.Errorf("the agent says %q, want that the state was opened", state)
	}
	if err != nil {
		run.Kill()
		return nil, 0, err
	}
	return run, attested, nil
}

// campaign asks the service for the campaign's state.
func (d *Demo) campaignState(ctx context.Context) (string, error) {
	out, err := d.operator(ctx, "firmware", "campaign", "show", "bios-2", "--json")
	if err != nil {
		return "", err
	}
	var c struct{ State string }
	if err := json.Unmarshal([]byte(out), &c); err != nil {
		return "", fmt.Errorf("read campaign: %w", err)
	}
	return c.State, nil
}

func (d *Demo) campaignOpen(ctx context.Context) (string, error) {
	if _, err := d.operator(ctx, "firmware", "campaign", "create", "bios-2", "--vendor", modelVendor, "--product", modelProduct,
		"--from", biosV1, "--to", biosV2, "--machine", d.machine.ID.String()); err != nil {
		return "", err
	}
	run, took, err := d.bootAccepted(ctx, vm.Power{Label: "campaign-v1"})
	if err != nil {
		return "", err
	}
	run.Kill()
	if state, err := d.campaignState(ctx); err != nil || state != "open" {
		return "", fmt.Errorf("after a boot with v1 the campaign is %q, want open (%w)", state, err)
	}
	return fmt.Sprintf("attested on %s after %.1f s", biosV1, took.Seconds()), nil
}

func (d *Demo) campaignProve(ctx context.Context) (string, error) {
	d.box.Code = d.bios(biosV2)
	run, took, err := d.bootAccepted(ctx, vm.Power{Label: "campaign-v2"})
	if err != nil {
		return "", err
	}
	run.Kill()
	if state, err := d.campaignState(ctx); err != nil || state != "proven" {
		return "", fmt.Errorf("after a boot with v2 the campaign is %q, want proven (%w)", state, err)
	}
	m, err := d.known(ctx, d.machine.ID)
	if err != nil {
		return "", err
	}
	if m.Firmware.Verdict != "measured" || m.Firmware.Version != biosV2 {
		return "", fmt.Errorf("the service has firmware %+v, want %s measured", m.Firmware, biosV2)
	}
	return fmt.Sprintf("%s measured after %.1f s, campaign proven", biosV2, took.Seconds()), nil
}

func (d *Demo) campaignClosed(ctx context.Context) (string, error) {
	return d.refuse(ctx, refusal{name: "campaign over", codes: []string{"firmware.denied"}, power: func(context.Context) (vm.Power, *vm.Box, error) {
		return vm.Power{Label: "campaign-closed", Code: d.bios(biosV1)}, d.box, nil
	}})
}

// audit writes the report and checks that an altered log is found out.
func (d *Demo) audit(ctx context.Context) (string, error) {
	if _, err := d.operator(ctx, "report", "attestation", "--key", d.path("keys", "release.pub"), "--machine", d.machine.ID.String(), "--out", d.path("report")); err != nil {
		return "", err
	}
	for _, f := range []string{"report.html", "report.json"} {
		if s, err := os.Stat(d.path("report", f)); err != nil || s.Size() == 0 {
			return "", fmt.Errorf("report: %s is missing or empty (%w)", f, err)
		}
	}
	log, err := d.operator(ctx, "audit", "export")
	if err != nil {
		return "", err
	}
	good, bad := d.path("report", "audit.jsonl"), d.path("report", "audit-altered.jsonl")
	if err := os.WriteFile(good, []byte(log), 0o600); err != nil {
		return "", err
	}
	key := d.path("keys", "release.pub")
	out, err := d.sealift(ctx, nil, "audit", "verify", good, "--key", key)
	if err != nil {
		return "", err
	}
	// An auditor's nightmare: a refusal that turns into an acceptance.
	altered := strings.Replace(log, `"allowed":false`, `"allowed":true`, 1)
	if altered == log {
		return "", errors.New("the audit log names no refusal")
	}
	if err := os.WriteFile(bad, []byte(altered), 0o600); err != nil {
		return "", err
	}
	defer os.Remove(bad)
	_, err = d.sealift(ctx, nil, "audit", "verify", bad, "--key", key)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 || !strings.Contains(err.Error(), "is not as it was written") {
		return "", fmt.Errorf("an altered audit log: got %w, want exit status 3 and why", err)
	}
	return strings.Join(strings.Fields(out), " "), nil
}

// reboot boots the box that nobody touched.
func (d *Demo) reboot(ctx context.Context) (string, error) {
	before, err := d.entries(ctx, 0)
	if err != nil {
		return "", err
	}
	run, attested, err := d.bootAccepted(ctx, vm.Power{Label: "reboot"})
	if err != nil {
		return "", err
	}
	d.running = run
	ctx, cancel := context.WithTimeoutCause(ctx, bootLimit, errors.New("the node took too long"))
	defer cancel()
	if _, err := d.nodeReady(ctx, run, d.machine.NodeName, d.bootID); err != nil {
		return "", err
	}
	ready := time.Since(run.Started)
	d.starts++
	if err := d.podRunning(ctx, run, fmt.Sprintf("start %d\n", d.starts)); err != nil {
		return "", err
	}
	after, err := d.entries(ctx, before[len(before)-1].Seq)
	if err != nil {
		return "", err
	}
	for _, e := range after {
		if strings.HasPrefix(e.Kind, "token") {
			return "", fmt.Errorf("a node that has joined was given another token: audit entry %d", e.Seq)
		}
	}
	return fmt.Sprintf("attested %.1f s, Ready %.1f s, state intact, no new token", attested.Seconds(), ready.Seconds()), nil
}

// Machine returns the machine that the demo is about.
func (d *Demo) Machine() api.Machine { return d.machine }

// UKISize returns the size of the image's UKI in bytes.
func (d *Demo) UKISize() (int64, error) {
	s, err := os.Stat(d.path("image", "uki.efi"))
	if err != nil {
		return 0, err
	}
	return s.Size(), nil
}

// HowToLook says how a person reaches the running fleet.
func (d *Demo) HowToLook() string {
	enter := fmt.Sprintf("nsenter --net=/proc/%d/ns/net --", d.hq.PID())
	if os.Getuid() != 0 || os.Getenv("SEALIFT_LAB_INSIDE") != "" {
		enter = fmt.Sprintf("nsenter --preserve-credentials --user=/proc/%[1]d/ns/user --net=/proc/%[1]d/ns/net --", d.hq.PID())
	}
	return fmt.Sprintf(`
The fleet is running until you press Ctrl-C. To look, from another terminal:
  %[1]s %[2]s --kubeconfig %[3]s get nodes,pods -A
  %[1]s %[4]s machine list --server https://%[5]s --identity %[6]s
  tail -f %[7]s
`, enter, d.cluster.bin["kubectl"], d.cluster.kubeconfig(), d.Sealift, operators, d.path("operator"), d.path("fleet", "box1", "serial-reboot.log"))
}
