package netup

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// The test of the whole client needs two network namespaces. The test binary
// starts itself in one, which becomes the machine's, and that one starts a
// child in another, in which dnsmasq is the DHCP server.
const inNamespace = "SEALIFT_TEST_NETNS"

func TestMain(m *testing.M) {
	if dir := os.Getenv(inNamespace); dir != "" {
		if err := machine(dir); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const serverConfig = `
port=53
no-resolv
bind-interfaces
interface=srv
dhcp-range=10.77.0.50,10.77.0.60,255.255.255.0,120
dhcp-option=option:router,10.77.0.1
dhcp-option=option:domain-search,store.example
dhcp-vendorclass=set:install,sealift-installer
dhcp-option-force=tag:install,67,http://10.77.0.1:8080/
dhcp-authoritative
log-dhcp
`

// machine is the main program in the namespace of the machine.
func machine(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "late"}, PeerName: "srv"}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("add veth: %w", err)
	}
	holder := exec.CommandContext(ctx, "sleep", "100")
	holder.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := holder.Start(); err != nil {
		return err
	}
	defer holder.Process.Kill()
	srv, err := netlink.LinkByName("srv")
	if err != nil {
		return err
	}
	// The child has its namespace as soon as it runs sleep.
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return err
	}
	for {
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", holder.Process.Pid)); err == nil && ns != own {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if err := netlink.LinkSetNsPid(srv, holder.Process.Pid); err != nil {
		return fmt.Errorf("move srv: %w", err)
	}
	inside := func(args ...string) *exec.Cmd {
		c := exec.CommandContext(ctx, "nsenter", append([]string{"-t", fmt.Sprint(holder.Process.Pid), "-n"}, args...)...)
		c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		return c
	}
	conf := filepath.Join(dir, "dnsmasq.conf")
	if err := os.WriteFile(conf, []byte(serverConfig), 0o600); err != nil {
		return err
	}
	if out, err := inside("ip", "addr", "add", "10.77.0.1/24", "dev", "srv").CombinedOutput(); err != nil {
		return fmt.Errorf("address: %w: %s", err, out)
	}
	var log bytes.Buffer
	dnsmasq := inside("dnsmasq", "-k", "-C", conf, "--dhcp-leasefile="+filepath.Join(dir, "leases"), "--log-facility=-", "-u", "root")
	dnsmasq.Stdout, dnsmasq.Stderr = &log, &log
	if err := dnsmasq.Start(); err != nil {
		return err
	}
	defer func() {
		dnsmasq.Process.Kill()
		dnsmasq.Wait()
		os.WriteFile(filepath.Join(dir, "log"), log.Bytes(), 0o600)
	}()
	// The interface appears and the cable is plugged in while Up is looking.
	time.AfterFunc(300*time.Millisecond, func() { exec.Command("ip", "link", "set", "late", "name", "eth1").Run() })
	time.AfterFunc(time.Second, func() { inside("ip", "link", "set", "srv", "up").Run() })

	c := Config{VendorClass: "sealift-installer", Iface: "eth1", ResolvConf: filepath.Join(dir, "run/resolv.conf"), Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	l, err := c.Up(ctx)
	if err != nil {
		return err
	}
	renewed, err := c.renew(ctx, l)
	if err != nil {
		return err
	}
	if renewed.Address != l.Address {
		return fmt.Errorf("renewal of %s gave %s", l.Address, renewed.Address)
	}
	if err := c.apply(renewed, l); err != nil {
		return err
	}
	// Another lease takes the place of the first.
	moved := *renewed
	moved.Address = netip.MustParsePrefix("10.77.0.99/24")
	if err := c.apply(&moved, renewed); err != nil {
		return err
	}
	link, err := netlink.LinkByName("eth1")
	if err != nil {
		return err
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil || len(addrs) != 1 || addrs[0].IPNet.String() != "10.77.0.99/24" {
		return fmt.Errorf("addresses are %v, %v", addrs, err)
	}
	conn, err := net.DialTimeout("udp", "203.0.113.1:9", time.Second)
	if err != nil {
		return fmt.Errorf("no default route: %w", err)
	}
	conn.Close()
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "lease.json"), b, 0o600)
}

func TestUpGetsALeaseFromDnsmasqOnceTheCableIsIn(t *testing.T) {
	for _, tool := range []string{"dnsmasq", "nsenter", "ip"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("REQUIRE_TOOLS") != "" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	dir := t.TempDir()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), inNamespace+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	out, err := cmd.CombinedOutput()
	log, _ := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatalf("%v: %s\ndnsmasq: %s", err, out, log)
	}
	b, err := os.ReadFile(filepath.Join(dir, "lease.json"))
	if err != nil {
		t.Fatal(err)
	}
	var l Lease
	if err := json.Unmarshal(b, &l); err != nil {
		t.Fatal(err)
	}
	if l.Iface != "eth1" || l.Address.Bits() != 24 || l.BootFile != "http://10.77.0.1:8080/" || l.Expire != 2*time.Minute || len(l.Routes) != 1 {
		t.Errorf("got %+v", l)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "run/resolv.conf")); err != nil || string(b) != "nameserver 10.77.0.1\nsearch store.example\n" {
		t.Errorf("resolv.conf is %q, %v", b, err)
	}
	if n := strings.Count(string(log), "DHCPACK(srv)"); n != 2 {
		t.Errorf("the server sent %d ACKs, want one for the lease and one for its renewal:\n%s", n, log)
	}
}

func TestUpEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c := Config{Iface: "sealift-none", Log: slog.New(slog.DiscardHandler)}
	if _, err := c.Up(ctx); err == nil {
		t.Error("no error")
	}
}
