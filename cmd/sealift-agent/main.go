// Command sealift-agent is the node side of Sealift: one static program that
// the kernel starts as PID 1 in the initramfs and that starts itself again as
// PID 1 of the root file system. What it does is in its environment, not in
// its arguments:
//
//   - in an initramfs whose configuration says install, it writes a signed
//     image to the disk and powers the machine off (install.go);
//   - in one that says boot, it attests, unlocks the state partition and
//     switches to the image's root file system (unlock.go);
//   - in the root file system it runs the Kubernetes node (run.go).
//
// Started in any other way it prints what it is and exits.
package main

import (
	"fmt"
	"os"

	"github.com/sealift/sealift/cmd/sealift-agent/internal/boot"
	"github.com/sealift/sealift/profiles"
)

// argRun is the argument with which the agent starts itself in the root file
// system.
const argRun = "run"

const usage = `sealift-agent is the node side of Sealift. It runs only as PID 1 of an image
that "sealift image build" made, and takes no arguments:

  in an installer's initramfs   it installs the image and powers off
  in an image's initramfs       it attests, unlocks the disk, switches root
  in an image's root            it runs the Kubernetes node
`

func main() {
	if os.Getpid() != 1 {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	switch {
	case boot.InInitramfs():
		pid1(profiles.ModeBoot, initramfs)
	case len(os.Args) == 2 && os.Args[1] == argRun:
		pid1(argRun, run)
	default:
		pid1(argRun, func(*machine) (boot.End, error) {
			return "", fmt.Errorf("started in a root file system without the argument %q: the image's initramfs did not start it", argRun)
		})
	}
}
