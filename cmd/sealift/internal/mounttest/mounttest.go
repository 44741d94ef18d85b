// Package mounttest runs tests that mount file systems, in a mount namespace of their own.
package mounttest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// dirEnv has the directory for a test that was started once more.
const dirEnv = "SEALIFT_TEST_MOUNT_DIR"

// Run runs the test t once more, as another process, and calls run there with an empty
// directory to mount at; an error of it fails t. What run mounts is gone with the
// process. t is a test by itself, not a part of one, and is skipped where there are no
// namespaces, unless REQUIRE_TOOLS is set.
func Run(t *testing.T, run func(dir string) error) {
	t.Helper()
	if dir := os.Getenv(dirEnv); dir != "" {
		if err := run(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if strings.Contains(t.Name(), "/") {
		t.Fatal("only a test by itself can be started once more")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), dirEnv+"="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if os.Getuid() != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		}
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOSPC) {
		if os.Getenv("REQUIRE_TOOLS") != "" {
			t.Fatalf("no namespace of its own: %v", err)
		}
		t.Skipf("no namespace of its own: %v", err)
	}
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}
