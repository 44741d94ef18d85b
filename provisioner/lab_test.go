package provisioner

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"

	"github.com/sealift/sealift/provisioner/api"
)

// The test binary is also what runs inside the network namespaces: as the
// server, or as a DHCP client.
func TestMain(m *testing.M) {
	var err error
	switch role := os.Getenv("SEALIFT_LAB_ROLE"); role {
	case "":
		os.Exit(m.Run())
	case "server":
		err = labServer()
	case "dora":
		err = labDORA()
	default:
		err = fmt.Errorf("unknown role %q", role)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

const (
	labAddress = "10.98.0.1/24"
	labServerI = "srv0"
	labClientI = "cli0"
)

// labConfig is what the server process is told, as JSON in SEALIFT_LAB.
type labConfig struct {
	Dir       string
	Interface string
	Address   string
	First     string
	Last      string
	Installer string
	Image     string // directory
	Probe     bool
	Debug     bool
}

// fileSink appends records to a file, or refuses them if a file says so.
type fileSink struct {
	mu  sync.Mutex
	dir string
}

func (s *fileSink) Record(ctx context.Context, r api.Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if why, err := os.ReadFile(filepath.Join(s.dir, "refuse")); err == nil {
		return fmt.Errorf("%w: %s", ErrRecordRefused, why)
	}
	f, err := os.OpenFile(filepath.Join(s.dir, "records"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	return json.NewEncoder(f).Encode(r)
}

// labServer serves until its standard input ends.
func labServer() error {
	var c labConfig
	if err := json.Unmarshal([]byte(os.Getenv("SEALIFT_LAB")), &c); err != nil {
		return err
	}
	hosts, err := OpenFileHosts(filepath.Join(c.Dir, "hosts"))
	if err != nil {
		return err
	}
	defer hosts.Close()
	level := slog.LevelInfo
	if c.Debug {
		level = slog.LevelDebug
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt)
	defer cancel()
	go func() {
		// Lines on standard input are an operator's wishes.
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			if mac, ok := strings.CutPrefix(in.Text(), "reinstall "); ok {
				err := Reinstall(ctx, hosts, api.HostKey{MAC: mac})
				fmt.Println("reinstall:", err)
			}
		}
		cancel()
	}()
	s := Server{
		Interface: c.Interface, Address: netip.MustParsePrefix(c.Address),
		Range:     Range{netip.MustParseAddr(c.First), netip.MustParseAddr(c.Last)},
		Lease:     10 * time.Minute,
		LeaseFile: filepath.Join(c.Dir, "leases"), Installers: map[string]string{"amd64": c.Installer},
		Images: map[string]string{"demo": c.Image}, Hosts: hosts, Records: &fileSink{dir: c.Dir},
		Log:       slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})),
		SkipProbe: !c.Probe, Ready: func() { fmt.Println("ready") },
	}
	return s.Run(ctx)
}

// labDORA takes a lease with nclient4, another implementation of the client
// side, and prints the offer and the ACK in hex.
func labDORA() error {
	var opts struct {
		Interface string
		MAC       string
		Broadcast bool
		Options   map[uint8][]byte
	}
	if err := json.Unmarshal([]byte(os.Getenv("SEALIFT_LAB")), &opts); err != nil {
		return err
	}
	mac, err := net.ParseMAC(opts.MAC)
	if err != nil {
		return err
	}
	client, err := nclient4.New(opts.Interface, nclient4.WithHWAddr(mac), nclient4.WithTimeout(3*time.Second), nclient4.WithRetry(3))
	if err != nil {
		return err
	}
	defer client.Close()
	mods := []dhcpv4.Modifier{dhcpv4.WithBroadcast(opts.Broadcast)}
	for code, value := range opts.Options {
		mods = append(mods, dhcpv4.WithGeneric(dhcpv4.GenericOptionCode(code), value))
	}
	lease, err := client.Request(context.Background(), mods...)
	if err != nil {
		return err
	}
	fmt.Println(hex.EncodeToString(lease.Offer.ToBytes()))
	fmt.Println(hex.EncodeToString(lease.ACK.ToBytes()))
	return nil
}

// needTool skips a test whose tool is missing, and fails it where tools are
// required.
func needTool(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			if os.Getenv("REQUIRE_TOOLS") != "" {
				t.Fatalf("%s is required: %v", name, err)
			}
			t.Skipf("%s is not installed", name)
		}
	}
}

// lab is two network namespaces without names, joined by a virtual cable. They
// end with the processes that hold them.
type lab struct {
	t              testing.TB
	server, client int // process ids of the holders
	user           bool
	dir            string
	config         labConfig
}

func newLab(t testing.TB) *lab {
	t.Helper()
	if testing.Short() {
		t.Skip("network namespaces in a short run")
	}
	needTool(t, "ip", "unshare", "nsenter")
	l := &lab{t: t, user: os.Getuid() != 0, dir: t.TempDir()}
	hold := []string{"unshare", "-n", "sh", "-c", "echo held; exec cat"}
	if l.user {
		hold = append([]string{"unshare", "-U", "-r"}, hold[1:]...)
	}
	l.server = l.hold(hold)
	l.client = l.hold(append(l.enter(l.server), "unshare", "-n", "sh", "-c", "echo held; exec cat"))
	l.in(l.server, "ip", "link", "set", "lo", "up")
	l.in(l.client, "ip", "link", "set", "lo", "up")
	l.in(l.server, "ip", "link", "add", labServerI, "type", "veth", "peer", "name", labClientI, "netns", strconv.Itoa(l.client))
	l.in(l.server, "ip", "addr", "add", labAddress, "dev", labServerI)
	l.in(l.server, "ip", "link", "set", labServerI, "up")
	l.in(l.client, "ip", "link", "set", labClientI, "up")
	l.config = labConfig{
		Dir: l.dir, Interface: labServerI, Address: labAddress, First: "10.98.0.20", Last: "10.98.0.250",
		Installer: filepath.Join(l.dir, "installer.efi"), Image: filepath.Join(l.dir, "image"),
	}
	// Not a program: what is served here is only compared.
	l.write("installer.efi", append([]byte("MZ"), pattern(3<<20)...))
	l.write("image/manifest.json", []byte(`{"name":"demo"}`))
	l.write("image/manifest.json.sigstore.json", []byte(`{}`))
	l.write("image/disk.raw.zst", pattern(1<<20))
	l.write("image/private.key", []byte("not to be served"))
	return l
}

// hold starts a process that keeps a namespace, until the test ends or dies.
func (l *lab) hold(args []string) int {
	l.t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	in, err := cmd.StdinPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { in.Close(); io.Copy(io.Discard, out); cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		cmd.Wait()
		if os.Getenv("REQUIRE_TOOLS") != "" {
			l.t.Fatalf("no network namespace: %v %s", err, stderr.Bytes())
		}
		l.t.Skipf("no network namespace: %v %s", err, stderr.Bytes())
	} else if line != "held\n" {
		l.t.Fatalf("the holder says %q", line)
	}
	return cmd.Process.Pid
}

func (l *lab) enter(pid int) []string {
	args := []string{"nsenter", "-t", strconv.Itoa(pid), "-n"}
	if l.user {
		args = append(args, "-U", "--preserve-credentials")
	}
	return args
}

// command prepares a command in the namespace of pid.
func (l *lab) command(pid int, args ...string) *exec.Cmd {
	args = append(l.enter(pid), args...)
	return exec.Command(args[0], args[1:]...)
}

// in runs a command in the namespace of pid and returns what it prints.
func (l *lab) in(pid int, args ...string) string {
	l.t.Helper()
	out, err := l.command(pid, args...).CombinedOutput()
	if err != nil {
		l.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (l *lab) write(name string, data []byte) {
	l.t.Helper()
	p := filepath.Join(l.dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(p, data, 0o600); err != nil {
		l.t.Fatal(err)
	}
}

// labProcess is a running server.
type labProcess struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines *bufio.Scanner

	mu  sync.Mutex
	log bytes.Buffer
}

func (p *labProcess) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Write(b)
}

func (p *labProcess) logged() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// ask writes a line to the server's standard input and returns its answer.
func (p *labProcess) ask(line string) string {
	fmt.Fprintln(p.stdin, line)
	p.lines.Scan()
	return p.lines.Text()
}

func self(t testing.TB) string {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return exe
}

// serve starts the server in its namespace and waits until it is ready. If it
// ends instead, serve returns its error.
func (l *lab) serve() (*labProcess, error) {
	l.t.Helper()
	config, err := json.Marshal(l.config)
	if err != nil {
		l.t.Fatal(err)
	}
	p := &labProcess{cmd: l.command(l.server, self(l.t))}
	p.cmd.Env = append(os.Environ(), "SEALIFT_LAB_ROLE=server", "SEALIFT_LAB="+string(config))
	p.cmd.Stderr = p
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		l.t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	p.lines = bufio.NewScanner(out)
	if !p.lines.Scan() || p.lines.Text() != "ready" {
		err := p.cmd.Wait()
		return nil, fmt.Errorf("%v: %s", err, p.logged())
	}
	l.t.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			if err := p.stop(); err != nil {
				l.t.Errorf("the server ended badly: %v", err)
			}
		}
		if l.t.Failed() {
			l.t.Logf("server log:\n%s", p.logged())
		}
	})
	return p, nil
}

func (l *lab) mustServe() *labProcess {
	l.t.Helper()
	p, err := l.serve()
	if err != nil {
		l.t.Fatal(err)
	}
	return p
}

// stop asks the server to end and waits for it.
func (p *labProcess) stop() error {
	p.stdin.Close()
	return p.cmd.Wait()
}

// dora takes a lease as another client and returns offer and ACK.
func (l *lab) dora(mac string, broadcast bool, options map[uint8][]byte) (offer, ack *dhcpv4.DHCPv4, err error) {
	l.t.Helper()
	opts, err := json.Marshal(map[string]any{"Interface": labClientI, "MAC": mac, "Broadcast": broadcast, "Options": options})
	if err != nil {
		l.t.Fatal(err)
	}
	cmd := l.command(l.client, self(l.t))
	cmd.Env = append(os.Environ(), "SEALIFT_LAB_ROLE=dora", "SEALIFT_LAB="+string(opts))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %s", err, stderr.Bytes())
	}
	var packets []*dhcpv4.DHCPv4
	for _, line := range strings.Fields(string(out)) {
		raw, err := hex.DecodeString(line)
		if err != nil {
			l.t.Fatal(err)
		}
		p, err := dhcpv4.FromBytes(raw)
		if err != nil {
			l.t.Fatal(err)
		}
		packets = append(packets, p)
	}
	if len(packets) != 2 {
		l.t.Fatalf("dora printed %q", out)
	}
	return packets[0], packets[1], nil
}

// pattern returns n bytes in which every aligned word is different, so that a
// lost or doubled block shows.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i>>16) ^ byte(i>>8)*31 ^ byte(i)*7
	}
	return b
}
