package vm

import (
	"os"
	"os/exec"
	"regexp"
	"testing"
)

func TestAcceleratorIsOneThatRuns(t *testing.T) {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		if os.Getenv("REQUIRE_TOOLS") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	accel := Accelerator(t.Context())
	t.Log(accel)
	// The same program under the accelerator that is always there must say
	// that it ran, or the test above proves nothing about kvm.
	if accel != "tcg" && accel != "kvm" {
		t.Errorf("got %q", accel)
	}
}

func TestConsoleLinesLoseTheirTerminalControl(t *testing.T) {
	got := clean([]byte("\x1b[2J\x1b[01;01H\x1b[=3hsealift: [ 1.00] agent started\r\n"))
	if !regexp.MustCompile(`^sealift: \[ 1.00\] agent started$`).MatchString(got) {
		t.Errorf("got %q", got)
	}
}
