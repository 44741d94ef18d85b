package lab

import (
	"os"
	"os/exec"
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
	out, err := b.Command(t.Context(), "ip", "route", "get", "10.99.1.1").Output()
	if err != nil || !strings.Contains(string(out), "dev far") {
		t.Errorf("route over the link: %s, %v", out, err)
	}
}
