package profiles

import (
	"fmt"
	"path/filepath"
	"strings"
)

// Architectures that images are built for, in GOARCH's spelling, which is
// Debian's too.
const (
	AMD64 = "amd64"
	ARM64 = "arm64"
)

// Arches returns all of them.
func Arches() []string { return []string{AMD64, ARM64} }

// LockPathFor returns where the lock of a profile's file lies for an
// architecture. One profile can have a lock for each: demo.lock.yaml beside
// demo.yaml is amd64's, demo.arm64.lock.yaml is arm64's, whichever of them the
// profile itself names.
func LockPathFor(profile, arch string) string {
	name := strings.TrimSuffix(profile, filepath.Ext(profile))
	if arch != AMD64 {
		name += "." + arch
	}
	return name + ".lock.yaml"
}

// defaultUKI is the budget of a UKI, in MiB. Debian's kernel for arm64 is an
// uncompressed image of 27 MB, the one for amd64 a compressed one of 8 MB.
func defaultUKI(arch string) int {
	if arch == ARM64 {
		return 40
	}
	return 32
}

// checkKernelArch reports a kernel package that is named for another
// architecture than the profile's, as happens when one profile is built for
// both. Debian ends the name of each kernel package in its architecture.
func (p *Profile) checkKernelArch(r report) {
	for _, other := range Arches() {
		if other != p.Arch && strings.HasSuffix(p.Kernel.Package, "-"+other) {
			r("kernel.package", fmt.Sprintf("%s is for %s, the profile for %s", p.Kernel.Package, other, p.Arch),
				"leave it out: the default is linux-image-cloud-"+p.Arch)
		}
	}
}
