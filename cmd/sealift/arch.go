package main

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/profiles"
)

// addArchFlag adds --arch, which overrides the architecture of a profile.
func addArchFlag(cmd *cobra.Command, arch *string) {
	cmd.Flags().StringVar(arch, "arch", "", "`architecture`: amd64 or arm64 (default: the profile's)")
}

// checkArch refuses a value of --arch that is no architecture, before a
// profile is blamed for it.
func checkArch(arch string) error {
	if arch != "" && !slices.Contains(profiles.Arches(), arch) {
		return usage{fmt.Errorf("--arch is %q, want amd64 or arm64", arch)}
	}
	return nil
}

// findImageProgram returns a program that goes into images of an architecture.
// It looks in dir for NAME-ARCH, as "make build" calls what it cross-compiles,
// and then for NAME; the first one for that architecture is taken. Without one
// the name of the file that would have been right is returned with the error.
func findImageProgram(dir, name, arch string) (string, error) {
	var errs []error
	for _, file := range []string{name + "-" + arch, name} {
		file = filepath.Join(dir, file)
		err := checkImageProgram(file, arch)
		if err == nil {
			return file, nil
		}
		errs = append(errs, err)
	}
	// What is there but of another architecture says more than what is missing.
	if !errors.Is(errs[0], os.ErrNotExist) {
		return "", errs[0]
	}
	if !errors.Is(errs[1], os.ErrNotExist) {
		return "", fmt.Errorf("%w, and there is no %s-%s", errs[1], name, arch)
	}
	return "", errs[0]
}

// checkImageProgram reports whether a file is a static program for Linux on an
// architecture. The agent runs where there is nothing else, not even a dynamic
// linker, and a wrong one shows only when a machine does not start.
func checkImageProgram(file, arch string) (err error) {
	machines := map[string]elf.Machine{profiles.AMD64: elf.EM_X86_64, profiles.ARM64: elf.EM_AARCH64}
	f, err := elf.Open(file)
	if err != nil {
		return fmt.Errorf("program of the image %s: %w", file, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if f.Machine != machines[arch] || f.Class != elf.ELFCLASS64 || f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN {
		return fmt.Errorf("program of the image %s: it is a %s for %s, want an executable for %s", file, f.Type, f.Machine, arch)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("program of the image %s: it needs a dynamic linker; build it with CGO_ENABLED=0", file)
		}
	}
	return nil
}

// findPrograms fills in the paths of the image's own programs and checks that
// they are for its architecture.
func (o *buildOptions) findPrograms(arch string) error {
	if o.agent == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find the agent: %w", err)
		}
		if o.agent, err = findImageProgram(filepath.Dir(self), "sealift-agent", arch); err != nil {
			return err
		}
	}
	if o.pause == "" {
		var err error
		if o.pause, err = findImageProgram(filepath.Dir(o.agent), "sealift-pause", arch); err != nil {
			return err
		}
	}
	return errors.Join(checkImageProgram(o.agent, arch), checkImageProgram(o.pause, arch))
}
