package lab

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestNamespacesAreJoinedOnlyByTheirLink(t *testing.T) {
	if os.Geteuid() != 0 {
		out, err := exec.Command("unshare", "-Urn", "--", os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v").CombinedOutput()
		if err != nil {
			t.Fatalf("in a user namespace: %v\n%s", err, out)
		}
		return
	}
	a, err := NewNamespace(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := NewNamespace(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.IP(t.Context(), "route get 10.99.1.1"); err == nil {
		t.Error("an empty namespace has a route")
	}
	if err := a.IP(t.Context(), "link add near type veth peer name far netns "+strconv.Itoa(b.PID()), "addr add 10.99.1.1/24 dev near", "link set near up"); err != nil {
		t.Fatal(err)
	}
	if err := b.IP(t.Context(), "addr add 10.99.1.2/24 dev far", "link set far up"); err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort("10.99.1.2:4321")
	if _, err := a.Listen(t.Context(), addr); err == nil {
		t.Error("namespace a listens on an address of b")
	}
	ln, err := b.Listen(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if out, err := a.Command(t.Context(), "ss", "-Hltn").Output(); err != nil || len(out) > 0 {
		t.Errorf("a has listeners: %s, %v", out, err)
	}
	if out, err := b.Command(t.Context(), "ss", "-Hltn").Output(); err != nil || !strings.Contains(string(out), addr.String()) {
		t.Errorf("b has not the listener: %s, %v", out, err)
	}
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	threads, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil || len(threads) == 0 {
		t.Fatalf("threads of this process: %q, %v", threads, err)
	}
	for _, thread := range threads {
		if at, err := os.Readlink(thread); err == nil && at != home {
			t.Errorf("%s stayed in %s", thread, at)
		}
	}
	out, err := b.Command(t.Context(), "ip", "route", "get", "10.99.1.1").Output()
	if err != nil || !strings.Contains(string(out), "dev far") {
		t.Errorf("route over the link: %s, %v", out, err)
	}
}
