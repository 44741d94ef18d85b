package image

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealift/sealift/image/efivar"
	"github.com/sealift/sealift/image/pe"
	"github.com/sealift/sealift/image/pkcs7"
	"github.com/sealift/sealift/image/sign"
	"github.com/sealift/sealift/image/tree"
	"github.com/sealift/sealift/image/uki/ukitest"
	"github.com/sealift/sealift/profiles"
)

const (
	testStub    = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"
	testRelease = "6.1.0-56-cloud-amd64"
)

// fixture is what builds are made of that have to be equal, in a form that
// another process can be given. Keys are PKCS #8, certificates DER.
type fixture struct {
	DBKey, PCRKey, ImageKey []byte
	PK, KEK, DB             []byte
}

func makeFixture(t *testing.T) fixture {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8 := func(key any) []byte {
		t.Helper()
		b, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	db := certificate(t, "db")
	return fixture{
		DBKey: pkcs8(db.Key), PCRKey: pkcs8(rsaKey(t, "pcr")), ImageKey: pkcs8(key),
		PK: certificate(t, "PK").Certificate.Raw, KEK: certificate(t, "KEK").Certificate.Raw, DB: db.Certificate.Raw,
	}
}

// input returns the fixture's build, which still needs an output. The nodes of
// its trees are added in one order or in the other.
func (f fixture) input(reverse bool) (in BuildInput, err error) {
	key := func(b []byte) any {
		k, kerr := x509.ParsePKCS8PrivateKey(b)
		err = errors.Join(err, kerr)
		return k
	}
	certificate := func(b []byte) *x509.Certificate {
		c, cerr := x509.ParseCertificate(b)
		err = errors.Join(err, cerr)
		return c
	}
	read := func(path string) []byte {
		b, rerr := os.ReadFile(path)
		err = errors.Join(err, rerr)
		return b
	}
	db, _ := key(f.DBKey).(*rsa.PrivateKey)
	pcr, _ := key(f.PCRKey).(*rsa.PrivateKey)
	imageKey, _ := key(f.ImageKey).(*ecdsa.PrivateKey)
	in = BuildInput{
		Profile: &profiles.Profile{
			Name: "demo", Version: "1", Arch: "amd64",
			Kubernetes: profiles.Kubernetes{Distro: "kubernetes", Version: "v1.34.4"},
			Disk:       profiles.Disk{ESP: 64, Slot: 8, Verity: 1, UKI: 4},
			Kernel:     profiles.Kernel{Cmdline: []string{"net.ifnames=0"}},
		},
		LockDigest: sha256.Sum256([]byte("lock")),
		Epoch:      time.Unix(1750000000, 0),
		Kernel:     ukitest.Kernel(pe.MachineAMD64, testRelease),
		Stub:       read(testStub),
		OSRelease:  []byte("ID=sealift\n"),
		DB:         &pkcs7.Signer{Key: db, Certificate: certificate(f.DB)},
		Enrolment:  efivar.Enrolment{PK: certificate(f.PK), KEK: certificate(f.KEK), DB: certificate(f.DB)},
		PCR:        pcr,
	}
	if err != nil {
		return in, err
	}
	if in.Signer, err = sign.FromKey(imageKey); err != nil {
		return in, err
	}
	in.Root, in.Boot, in.Installer, err = trees(reverse)
	return in, err
}

func trees(reverse bool) (root, boot, installer *tree.Tree, err error) {
	big := make([]byte, 3<<20+5)
	for i := range big {
		big[i] = byte(i * i >> 7)
	}
	files := []struct {
		name string
		data []byte
	}{{"usr/bin/tool", big}, {"etc/hostname", []byte("box\n")}, {"etc/os-release", []byte("ID=sealift\n")}, {"empty", nil}}
	if reverse {
		slices.Reverse(files)
	}
	root, boot, installer = tree.New(), tree.New(), tree.New()
	for _, f := range files {
		err = errors.Join(err, root.WriteFile(f.name, f.data, 0o755))
	}
	return root, boot, installer, errors.Join(err,
		boot.WriteFile("init", []byte("boot"), 0o755), installer.WriteFile("init", []byte("install"), 0o755))
}

// order is a build for another process.
type order struct {
	Fixture fixture
	Version string
	Output  string
	Outputs []Output
	Workers int
	Reverse bool
	Umask   int
	// KillAt ends the process by SIGKILL in a step, when Done bytes of it are
	// done, or after the image was put into its place ("published").
	KillAt string
	Done   int64
	// Mount is where a file system of MountSize bytes is put before anything
	// else. The process has to be in namespaces of its own.
	Mount     string
	MountSize int64
	// Twice builds again, with all outputs and as version 2.
	Twice bool
}

// answer is what the other process found.
type answer struct {
	Err    string
	Busy   bool
	Before map[string]string // of the output's parent, as snapshot has it, before the last build
	After  map[string]string
	UID    int
}

const orderVariable = "SEALIFT_TEST_BUILD"

func TestMain(m *testing.M) {
	text := os.Getenv(orderVariable)
	if text == "" {
		os.Exit(m.Run())
	}
	var o order
	err := json.Unmarshal([]byte(text), &o)
	if err == nil {
		var a answer
		if a, err = o.carryOut(); err == nil {
			err = json.NewEncoder(os.Stdout).Encode(a)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func (o *order) carryOut() (a answer, err error) {
	if o.Mount != "" {
		if err := unix.Mount("tmpfs", o.Mount, "tmpfs", 0, fmt.Sprintf("size=%d,mode=755", o.MountSize)); err != nil {
			return a, fmt.Errorf("mount: %w", err)
		}
	}
	if o.Umask != 0 {
		syscall.Umask(o.Umask)
	}
	in, err := o.Fixture.input(o.Reverse)
	if err != nil {
		return a, err
	}
	in.Output, in.Outputs, in.Workers = o.Output, o.Outputs, o.Workers
	if o.Version != "" {
		in.Profile.Version = o.Version
	}
	die := func() {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	in.Progress = func(step string, done, _ int64) {
		if step == o.KillAt && done >= o.Done {
			die()
		}
	}
	if o.KillAt == "published" {
		in.published = die
	}
	_, err = Build(context.Background(), in)
	if o.Twice {
		if err != nil {
			return a, fmt.Errorf("the first build: %w", err)
		}
		if a.Before, err = snapshot(o.Mount); err != nil {
			return a, err
		}
		in.Profile.Version, in.Outputs = "2", everyOutput()
		_, err = Build(context.Background(), in)
	}
	if err != nil {
		a.Err, a.Busy = err.Error(), errors.Is(err, ErrBusy)
	}
	a.UID = os.Getuid()
	if o.Mount != "" {
		a.After, err = snapshot(o.Mount)
		return a, err
	}
	return a, nil
}

// process is the test program as a process that carries an order out.
func (o *order) process(t *testing.T, env ...string) *exec.Cmd {
	t.Helper()
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), append(env, orderVariable+"="+string(text))...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// namespaces gives a process a user and mounts of its own. It is uid inside.
func namespaces(cmd *exec.Cmd, uid int) {
	cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS
	cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: os.Getuid(), Size: 1}}
	cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: os.Getgid(), Size: 1}}
}

// run waits for the answer. The process must not have been killed.
func (o *order) run(t *testing.T, cmd *exec.Cmd) answer {
	t.Helper()
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("build in another process: %v: %s", err, &stderr)
	}
	var a answer
	if err := json.Unmarshal(out, &a); err != nil {
		t.Fatalf("build in another process: %v: %s", err, out)
	}
	return a
}

// runKilled waits until the process has killed itself.
func (o *order) runKilled(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	var stderr strings.Builder
	cmd.Stderr = &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the build was not killed at %q: %v: %s", o.KillAt, err, &stderr)
	}
}
