package rootfs

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/sealift/sealift/image/inputs"
	"github.com/sealift/sealift/profiles"
)

// modules are the kernel modules of one kernel package.
type modules struct {
	files   map[string]*module // by normal name
	builtin map[string]bool    // by normal name
}

// module is one module file.
type module struct {
	path string // in an image, absolute
	data []byte
}

// normal is the name as the kernel spells it: module names may be written with
// dashes or underscores, and files are named with either.
func normal(name string) string { return strings.ReplaceAll(name, "-", "_") }

// readKernel reads the kernel package: the one package of the lock that has a
// kernel in it. The package that the profile names is often only a name for
// the newest one.
func (b *Builder) readKernel() error {
	b.modules = &modules{files: map[string]*module{}, builtin: map[string]bool{}}
	for _, p := range b.c.Inputs.Lock.Debian.Packages {
		if !strings.HasPrefix(p.Name, "linux-image-") {
			continue
		}
		if err := b.c.Inputs.ReadPackage(p.Name, b.kernelEntry); err != nil {
			return err
		}
	}
	if b.Kernel == nil {
		return errors.New("no package of the lock has a kernel")
	}
	return nil
}

func (b *Builder) kernelEntry(e inputs.DebEntry, r io.Reader) error {
	if !e.Mode.IsRegular() {
		return nil
	}
	name := e.Name
	if strings.HasPrefix(name, "lib/") {
		name = "usr/" + name
	}
	read := func() ([]byte, error) { return io.ReadAll(r) }
	var err error
	switch {
	case strings.HasPrefix(name, "boot/vmlinuz-"):
		if b.Kernel != nil {
			return fmt.Errorf("there are two kernels: %s and %s", b.KernelVersion, name)
		}
		b.KernelVersion = strings.TrimPrefix(name, "boot/vmlinuz-")
		b.Kernel, err = read()
	case path.Base(name) == "modules.builtin":
		list, err := read()
		if err != nil {
			return err
		}
		for _, line := range strings.Fields(string(list)) {
			b.modules.builtin[normal(strings.TrimSuffix(path.Base(line), ".ko"))] = true
		}
	case strings.HasPrefix(name, "usr/lib/modules/") && path.Ext(name) == ".ko":
		m := &module{path: "/" + name}
		m.data, err = read()
		b.modules.files[normal(strings.TrimSuffix(path.Base(name), ".ko"))] = m
	}
	return err
}

// initrdModules are the modules that an initramfs of that mode loads.
func (b *Builder) initrdModules(mode string) []string {
	want := b.base.Modules.Boot
	if mode == profiles.ModeInstall {
		want = b.base.Modules.Install
	}
	return append(append([]string(nil), want...), b.c.Profile.Kernel.Initrd...)
}

// optionalModules are those that it loads if the kernel has them.
func (b *Builder) optionalModules(mode string) []string {
	if mode == profiles.ModeInstall {
		return append(append([]string(nil), b.base.Modules.Optional...), b.base.Modules.Media...)
	}
	return b.base.Modules.Optional
}

// resolve returns the wanted modules in an order in which they can be loaded:
// each after those that it depends on. One that is built into the kernel needs
// no loading and is left out; one that the kernel does not have is an error,
// unless it is optional.
func (m *modules) resolve(want, optional []string) ([]*module, error) {
	var order []*module
	state := map[string]int{} // 1: being resolved, 2: done
	var visit func(name, from string, must bool) error
	visit = func(name, from string, must bool) error {
		name = normal(name)
		switch state[name] {
		case 1:
			return fmt.Errorf("module %s depends on itself", name)
		case 2:
			return nil
		}
		f := m.files[name]
		if f == nil {
			if m.builtin[name] || !must {
				return nil
			}
			return fmt.Errorf("the kernel has no module %s%s, and it is not built in", name, from)
		}
		state[name] = 1
		info, err := readModinfo(f.data)
		if err != nil {
			return fmt.Errorf("module %s: %w", f.path, err)
		}
		for _, d := range info.pre {
			// A soft dependency may name an algorithm, which is no module.
			if err := visit(d, "", false); err != nil {
				return err
			}
		}
		for _, d := range info.depends {
			if err := visit(d, ", which "+name+" depends on", true); err != nil {
				return err
			}
		}
		state[name] = 2
		order = append(order, f)
		return nil
	}
	for _, name := range want {
		if err := visit(name, "", true); err != nil {
			return nil, err
		}
	}
	for _, name := range optional {
		if err := visit(name, "", false); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// modinfo is what a module says about its order of loading.
type modinfo struct {
	depends []string // modules whose symbols it uses
	pre     []string // softdep: what should be loaded before it, if it is there
}

// maxModinfo bounds the .modinfo section, in bytes.
const maxModinfo = 1 << 20

// readModinfo reads the .modinfo section of a module file: NUL-terminated
// strings of the form key=value (Linux include/linux/moduleparam.h).
func readModinfo(b []byte) (modinfo, error) {
	var info modinfo
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return info, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return info, errors.New("not a kernel module: no .modinfo section")
	}
	if s.Size > maxModinfo || s.FileSize > maxModinfo {
		return info, fmt.Errorf(".modinfo has %d bytes, at most %d allowed", s.Size, maxModinfo)
	}
	raw, err := s.Data()
	if err != nil {
		return info, fmt.Errorf(".modinfo: %w", err)
	}
	for _, kv := range strings.Split(string(raw), "\x00") {
		key, value, _ := strings.Cut(kv, "=")
		switch key {
		case "depends":
			for _, d := range strings.Split(value, ",") {
				if d != "" {
					info.depends = append(info.depends, d)
				}
			}
		case "softdep":
			info.pre = append(info.pre, softdepPre(value)...)
		}
	}
	return info, nil
}

// softdepPre returns the modules after "pre:" in a soft dependency
// (modprobe.d(5)), which reads "pre: a b post: c".
func softdepPre(s string) []string {
	var out []string
	pre := false
	for _, w := range strings.Fields(s) {
		switch w {
		case "pre:":
			pre = true
		case "post:":
			pre = false
		default:
			if pre {
				out = append(out, w)
			}
		}
	}
	return out
}
