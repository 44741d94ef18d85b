// Package demo takes one box from nothing to a Kubernetes node, changes the key
// of its disk, refuses it seven times, opens it once with a recovery code, moves
// it to another firmware and hands over the audit report: the whole loop of
// Sealift, on real firmware, in network namespaces of its own.
// `sealift demo` and the long test run the same Steps.
package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/cmd/sealift/internal/lab"
	"github.com/sealift/sealift/cmd/sealift/internal/progress"
	"github.com/sealift/sealift/cmd/sealift/internal/vm"
)

// Options says what a demo works with. All paths are absolute.
type Options struct {
	Dir     string // of this demo: keys, image, fleet and report
	Cache   string // downloads and builds; outlives demos
	Profile string
	Sealift string // the sealift program, whose commands the demo runs
	Agent   string // the sealift-agent program
	Log     *progress.Reporter

	NoReports bool // of the running boxes
	// WriteLog is a file for what the boot that changes the disk key writes to the
	// disk, see vm.Power. Optional.
	WriteLog string
}

// Firmware images as Debian's ovmf package installs them.
const (
	ovmfCode = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd"
	ovmfVars = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

// Addresses. The factory, the headquarters that all stores can reach, and one store.
const (
	factoryNet = "10.77.1.1/24"
	factoryIP  = "10.77.1.1"
	hqIP       = "10.77.2.1"
	storeUpIP  = "10.77.2.2"
	storeIP    = "10.77.3.1"
	storeNet   = "10.77.3.0/24"
	nodeAPI    = hqIP + ":8443"
	operators  = "127.0.0.1:8444"
)

// The model that QEMU is told to be, and the demo's firmware releases.
const (
	modelVendor  = "Sealift"
	modelProduct = "demo-box"
	biosV1       = ovmfVersion
	biosV2       = "2.0.0"
	biosV2Date   = "03/04/2026"
	biosRogue    = "6.6.6"
	biosRogDate  = "06/06/2006"
)

// Step is one part of the demo. Run returns what is worth a line in the table.
type Step struct {
	Name string
	Run  func(ctx context.Context) (string, error)
}

// Demo is a running demo. Its Steps build on each other and run in order.
type Demo struct {
	Options
	accel string

	hq, store *lab.Namespace
	programs  map[string]string // of the control plane, by name
	cluster   *cluster
	serve     *process
	box       *vm.Box
	running   *vm.Run // the box, while it is on between steps
	machine   api.Machine
	bootID    string   // Kubernetes' name for the last boot seen
	starts    int      // of the pod
	spent     []string // the lines of a recovery code that was used
	ca        vm.TPMCA

	box384     *vm.Box // whose TPM has SHA-384
	machine384 api.Machine
	bootID384  string
	firstBoot  []Timing
}

// Timing is one figure from power-on.
type Timing struct {
	What string
	Took time.Duration
	Goal time.Duration
}

// New prepares a demo; nothing runs yet.
func New(ctx context.Context, o Options) *Demo {
	return &Demo{Options: o, accel: vm.Accelerator(ctx)}
}

// Accelerator names how QEMU runs the boxes.
func (d *Demo) Accelerator() string { return d.accel }

// Timings returns the figures of the first boot in the store.
func (d *Demo) Timings() []Timing { return d.firstBoot }

func (d *Demo) path(parts ...string) string {
	return filepath.Join(append([]string{d.Dir}, parts...)...)
}

// Steps returns the demo's steps in order.
func (d *Demo) Steps() []Step {
	steps := []Step{
		{"keys", d.keys},
		{"control plane programs", d.buildCluster},
		{"image", d.image},
		{"firmware releases", d.firmware},
		{"fleet on", d.fleetOn},
		{"factory: install over the network", d.install},
		{"store: first boot", d.firstBootInStore},
		{"cluster: node Ready, pod Running, token gone", d.cluster1},
		{"disk key: another one is asked for", d.askDiskKey},
		{"disk key: changed by the next boot", d.changeDiskKey},
		{"disk key: the boot after opens with it", d.openWithNewKey},
	}
	for _, r := range d.refusals() {
		steps = append(steps, Step{"refused: " + r.name, func(ctx context.Context) (string, error) { return d.refuse(ctx, r) }})
	}
	steps = append(steps,
		Step{"root file system: a changed byte ends the boot", d.damage},
		Step{"SHA-384: a box without SHA-256, from nothing to Ready", d.sha384Only},
		Step{"SHA-384: the same with both banks", d.sha384Both},
		Step{"campaign: open, v1 still boots", d.campaignOpen},
		Step{"campaign: v2 proves it", d.campaignProve},
		Step{"campaign: v1 is refused", d.campaignClosed},
		Step{"audit: report and chain", d.audit},
		Step{"reboot: unlocked and Ready with its state", d.reboot},
	)
	if !d.NoReports {
		steps = append(steps, Step{"running: attested again by a report", d.attestedAgain})
	}
	return steps
}

// Close switches everything off.
func (d *Demo) Close() {
	d.stopServe()
	if d.cluster != nil {
		d.cluster.stop()
	}
	for _, ns := range []*lab.Namespace{d.store, d.hq} {
		if ns != nil {
			ns.Close()
		}
	}
}

// errGone is what sealift exits with when a locked input is to be had nowhere.
const exitGone = 4

// sealift runs one of the program's own commands in namespace ns (or here, if
// nil) and returns its standard output.
func (d *Demo) sealift(ctx context.Context, ns *lab.Namespace, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, d.Sealift, args...)
	if ns != nil {
		cmd = ns.Command(ctx, d.Sealift, args...)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("sealift %s: %w\n%s", strings.Join(args, " "), err, indent(stderr.String(), 25))
	}
	return string(out), nil
}

// operator runs an operator's command against the service.
func (d *Demo) operator(ctx context.Context, args ...string) (string, error) {
	return d.sealift(ctx, d.hq, append(args, "--server", "https://"+operators, "--identity", d.path("operator"))...)
}

func indent(s string, max int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	if len(lines) > max {
		lines = lines[len(lines)-max:]
	}
	return "    " + strings.Join(lines, "\n    ")
}

func (d *Demo) keys(ctx context.Context) (string, error) {
	if _, err := os.Stat(d.path("keys")); err == nil {
		return "reused", nil
	}
	if _, err := d.sealift(ctx, nil, "keys", "init", d.path("keys")); err != nil {
		return "", err
	}
	return "PK, KEK, db, image, PCR, service CA, release", nil
}

func (d *Demo) image(ctx context.Context) (string, error) {
	profile := d.Profile
	build := func() (string, error) {
		return d.sealift(ctx, nil, "image", "build", profile, "--keys", d.path("keys"), "--out", d.path("image"),
			"--cache", d.Cache, "--agent", d.Agent, "--reuse")
	}
	out, err := build()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == exitGone {
		// A demo is no product: it may take newer inputs, if it says so.
		d.Log.Note("a locked package is no longer to be had anywhere: locking anew into %s", d.path("profile"))
		if profile, err = d.relock(ctx); err != nil {
			return "", err
		}
		out, err = build()
	}
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(out), nil
}

// relock copies the profile beside the demo and locks the copy.
func (d *Demo) relock(ctx context.Context) (string, error) {
	b, err := os.ReadFile(d.Profile)
	if err != nil {
		return "", err
	}
	// Paths in a profile are relative to its file.
	root, err := filepath.Rel(d.path("profile"), filepath.Dir(d.Profile))
	if err != nil {
		return "", err
	}
	b = regexp.MustCompile(`(?m)^(\s*(?:-\s*)?(?:go|archive):\s*)(\.\.?/)`).ReplaceAll(b, []byte("${1}"+filepath.ToSlash(root)+"/${2}"))
	copied := d.path("profile", filepath.Base(d.Profile))
	if err := os.MkdirAll(filepath.Dir(copied), 0o755); err != nil {
		return "", err
	}
	if err := os.WriteFile(copied, b, 0o644); err != nil {
		return "", err
	}
	_, err = d.sealift(ctx, nil, "profile", "lock", copied, "--cache", d.Cache)
	return copied, err
}

// firmware makes the releases that the demo boots and the catalogue of the
// approved ones. The digests come out of the firmware files.
func (d *Demo) firmware(ctx context.Context) (string, error) {
	stock, err := os.ReadFile(ovmfCode)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(d.path("firmware"), 0o755); err != nil {
		return "", err
	}
	made := "reused"
	for version, date := range map[string]string{biosV2: biosV2Date, biosRogue: biosRogDate} {
		file := d.bios(version)
		// A release is remade when the stock firmware is newer.
		if a, err := os.Stat(file); err == nil {
			if b, err := os.Stat(ovmfCode); err == nil && a.ModTime().After(b.ModTime()) {
				continue
			}
		}
		made = "made"
		b, err := release(stock, version, date)
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(file, b, 0o644); err != nil {
			return "", err
		}
	}
	catalogue := d.path("firmware", "catalogue.yaml")
	if err := os.RemoveAll(catalogue); err != nil {
		return "", err
	}
	for version, status := range map[string]string{biosV1: "allowed", biosV2: "candidate"} {
		if _, err := d.sealift(ctx, nil, "firmware", "catalogue", "add", catalogue, d.bios(version),
			"--vendor", modelVendor, "--product", modelProduct, "--version", version, "--status", status, "--unpinned-first", "1"); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%s: %s allowed, %s candidate, %s in no catalogue", made, biosV1, biosV2, biosRogue), nil
}

// bios returns the firmware image of a release.
func (d *Demo) bios(version string) string {
	if version == biosV1 {
		return ovmfCode
	}
	return d.path("firmware", "OVMF_CODE-"+version+".fd")
}

// newBox describes a box; it is made by vm.Create.
func (d *Demo) newBox(n int) *vm.Box {
	return &vm.Box{
		Name: fmt.Sprintf("box%d", n), Dir: d.path("fleet", fmt.Sprintf("box%d", n)), Code: d.bios(biosV1),
		Memory: 2048, CPUs: 2, MAC: fmt.Sprintf("52:54:00:77:00:%02x", n),
		UUID: fmt.Sprintf("5ea11f70-0000-4000-8000-%012d", n), Serial: fmt.Sprintf("SL-%04d", n),
	}
}

const diskSize = 6 << 30

// fleetOn builds the networks and starts the control plane and the service.
func (d *Demo) fleetOn(ctx context.Context) (string, error) {
	if err := os.RemoveAll(d.path("fleet")); err != nil {
		return "", err
	}
	if err := os.MkdirAll(d.path("fleet"), 0o700); err != nil {
		return "", err
	}
	if err := d.networks(ctx); err != nil {
		return "", err
	}
	d.box = d.newBox(1)
	d.ca = vm.TPMCA{Dir: d.path("fleet", "tpm-ca")}
	if err := vm.Create(ctx, d.box, ovmfVars, diskSize, d.ca); err != nil {
		return "", err
	}
	d.cluster = &cluster{dir: d.path("fleet", "cluster"), bin: d.programs, ns: d.hq, addr: hqIP}
	if err := d.cluster.start(ctx); err != nil {
		return "", err
	}
	if err := os.RemoveAll(d.path("operator")); err != nil {
		return "", err
	}
	if _, err := d.sealift(ctx, nil, "keys", "issue", "operator", "demo", "--role", "operator,approver,auditor", "--keys", d.path("keys"), "--out", d.path("operator")); err != nil {
		return "", err
	}
	return "etcd, kube-apiserver, kube-controller-manager, sealift serve", d.startServe(ctx, "sha256")
}

// networks makes headquarters with a factory network, and a store from which
// only headquarters' address can be reached.
func (d *Demo) networks(ctx context.Context) error {
	var err error
	if d.hq, err = lab.NewNamespace(ctx, "headquarters"); err != nil {
		return err
	}
	if d.store, err = lab.NewNamespace(ctx, "store"); err != nil {
		return err
	}
	if err := d.hq.IP(ctx,
		"link add factory type bridge", "addr add "+factoryNet+" dev factory", "link set factory up",
		"tuntap add line1 mode tap", "link set line1 master factory up",
		fmt.Sprintf("link add wan type veth peer name uplink netns %d", d.store.PID()),
		"addr add "+hqIP+"/30 dev wan", "link set wan up", "route add "+storeNet+" via "+storeUpIP); err != nil {
		return err
	}
	if err := d.store.IP(ctx,
		"addr add "+storeUpIP+"/30 dev uplink", "link set uplink up",
		"link add lan type bridge", "addr add "+storeIP+"/24 dev lan", "link set lan up",
		"tuntap add till1 mode tap", "link set till1 master lan up"); err != nil {
		return err
	}
	if out, err := d.store.Command(ctx, "sysctl", "-qw", "net.ipv4.ip_forward=1").CombinedOutput(); err != nil {
		return fmt.Errorf("store: turn on forwarding: %w: %s", err, out)
	}
	// The store's own router hands out addresses, as any store's does. It
	// changes no group, which nobody may in a user namespace.
	router := d.store.Command(context.WithoutCancel(ctx), "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0",
		"--user=root", "--group=", "--interface=lan", "--bind-interfaces", "--leasefile-ro", "--no-ping",
		"--dhcp-range=10.77.3.50,10.77.3.99,255.255.255.0,1h", "--dhcp-option=3,"+storeIP, "--pid-file", "--log-facility=-")
	router.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := os.Create(d.path("fleet", "store-router.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	router.Stdout, router.Stderr = log, log
	if err := router.Start(); err != nil {
		return fmt.Errorf("store: start its router: %w", err)
	}
	go router.Wait()
	return nil
}

// stopServe ends the service in order.
func (d *Demo) stopServe() {
	if d.serve == nil {
		return
	}
	d.serve.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.serve.done:
	case <-time.After(10 * time.Second):
		d.serve.cmd.Process.Kill()
		<-d.serve.done
	}
	d.serve = nil
}

// startServe writes the service's configuration and starts it. It appraises by
// the PCR bank.
func (d *Demo) startServe(ctx context.Context, bank string) error {
	config := fmt.Sprintf(`# One process: provisioner for the factory, attestation service for the stores.
keys: %[1]s
kek: {file: %[1]s/disk-kek.key}
store: %[2]s
images: [%[3]s]
node: {listen: "%[4]s", hosts: ["%[5]s"]}
operator: {listen: "%[6]s", hosts: ["127.0.0.1"]}
tpm:
  allowed: [software]
  bank: %[14]s
  roots:
    - {class: software, file: %[7]s}
    - {class: software, file: %[8]s, intermediate: true}
firmware: {catalogue: %[9]s}
reports: {every: %[13]s}
cluster: {kubeconfig: %[10]s}
provision: {interface: factory, address: %[11]s, first: 10.77.1.100, last: 10.77.1.199, state: %[12]s}
`, d.path("keys"), d.path("fleet", "sealift.db"), d.path("image"), nodeAPI, hqIP, operators,
		d.ca.RootFile(), d.ca.IssuerFile(), d.path("firmware", "catalogue.yaml"), d.cluster.kubeconfig(), factoryNet, d.path("fleet", "provisioner"), reportsEvery(d.NoReports), bank)
	file := d.path("fleet", "serve.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return err
	}
	logFile := d.path("fleet", "serve.log")
	log, err := os.OpenFile(logFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := d.hq.Command(context.WithoutCancel(ctx), d.Sealift, "serve", "--config", file)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start sealift serve: %w", err)
	}
	p := &process{name: "sealift serve", cmd: cmd, log: logFile, done: make(chan struct{})}
	go func() { p.err = cmd.Wait(); close(p.done) }()
	d.serve = p
	deadline := time.Now().Add(30 * time.Second)
	for {
		_, err := d.operator(ctx, "machine", "list", "--json")
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("sealift serve ended: %w\n%s", p.err, tail(logFile, 20))
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("sealift serve does not answer: %w\n%s", err, tail(logFile, 20))
		}
	}
}

// machines asks the service for its records.
func (d *Demo) machines(ctx context.Context) ([]api.Machine, error) {
	out, err := d.operator(ctx, "machine", "list", "--json")
	if err != nil {
		return nil, err
	}
	return jsonLines[api.Machine](out)
}

func jsonLines[T any](s string) ([]T, error) {
	var all []T
	dec := json.NewDecoder(strings.NewReader(s))
	for dec.More() {
		var v T
		if err := dec.Decode(&v); err != nil {
			return nil, fmt.Errorf("read JSON output: %w", err)
		}
		all = append(all, v)
	}
	return all, nil
}

// entry is an audit entry as far as the demo looks into it.
type entry struct {
	Seq     int64            `json:"seq"`
	Kind    string           `json:"kind"`
	Machine attest.MachineID `json:"machine"`
	Data    json.RawMessage  `json:"data"`
}

// entries returns the audit log after seq.
func (d *Demo) entries(ctx context.Context, after int64) ([]entry, error) {
	out, err := d.operator(ctx, "audit", "export")
	if err != nil {
		return nil, err
	}
	all, err := jsonLines[entry](out)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(e entry) bool { return e.Seq <= after }), nil
}
