// Package rootfs puts together the two file trees of an image: the node's root
// file system (Builder.Root) and the initramfs of its UKI and of the installer
// (Builder.Initrd). Both hold only what is used: chosen files of Debian
// packages, the shared libraries that they need, kernel modules with their
// dependencies, the agent, the distro's programs and configuration, and the
// preloaded container images.
package rootfs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"github.com/sealift/sealift/image/inputs"
	"github.com/sealift/sealift/image/oci"
	"github.com/sealift/sealift/image/tree"
	"github.com/sealift/sealift/profiles"
)

// Config is what trees are built from. All fields are required unless marked
// Optional.
type Config struct {
	Profile *profiles.Profile
	Inputs  *inputs.Inputs // of the profile's lock
	Agent   string         // sealift-agent, a static executable for Profile.Arch
	Pause   string         // sealift-pause, the same
	Epoch   int64          // creation time of preloaded images, Unix seconds

	// TempDir is where the files of a base image are kept while the image is
	// built. Optional; os.TempDir if empty.
	TempDir string
}

// Builder makes the trees of one image. It holds the kernel package in memory.
type Builder struct {
	// KernelVersion is the version as uname -r prints it.
	KernelVersion string
	// Kernel is the kernel's bzImage.
	Kernel []byte
	// Stub is systemd-stub, an EFI executable.
	Stub []byte
	// StubPackage is the version of the Debian package that Stub is from.
	StubPackage string

	c       Config
	base    *profiles.Base
	distro  *profiles.Distro
	modules *modules
}

// New reads the kernel and the stub.
func New(c Config) (*Builder, error) {
	b := &Builder{c: c}
	var err error
	if b.base, err = profiles.LoadBase(c.Profile.Base); err != nil {
		return nil, fmt.Errorf("read kernel: %w", err)
	}
	if b.distro, err = profiles.LoadDistro(c.Profile.Kubernetes.Distro); err != nil {
		return nil, fmt.Errorf("read kernel: %w", err)
	}
	if err := b.readKernel(); err != nil {
		return nil, fmt.Errorf("read kernel: %w", err)
	}
	if err := b.readStub(); err != nil {
		return nil, fmt.Errorf("read systemd-stub: %w", err)
	}
	return b, nil
}

// readStub takes the stub out of its package.
func (b *Builder) readStub() error {
	suffix, ok := map[string]string{"amd64": "x64", "arm64": "aa64"}[b.c.Profile.Arch]
	if !ok {
		return fmt.Errorf("UEFI has no name for architecture %q", b.c.Profile.Arch)
	}
	pkg, err := b.c.Inputs.Lock.Package(b.base.Stub.Package)
	if err != nil {
		return err
	}
	b.StubPackage = pkg.Version
	want := strings.ReplaceAll(b.base.Stub.Path, "${ARCH}", suffix)
	err = b.c.Inputs.ReadPackage(pkg.Name, func(e inputs.DebEntry, r io.Reader) (err error) {
		if "/"+e.Name == want && e.Mode.IsRegular() {
			b.Stub, err = io.ReadAll(r)
		}
		return err
	})
	if err == nil && b.Stub == nil {
		err = fmt.Errorf("package %s %s has no file %s", pkg.Name, pkg.Version, want)
	}
	return err
}

// Root makes the node's root file system.
func (b *Builder) Root(ctx context.Context) (*tree.Tree, error) {
	t, err := b.start(ctx)
	if err != nil {
		return nil, fmt.Errorf("build root file system: %w", err)
	}
	steps := []struct {
		what string
		run  func(*tree.Tree) error
	}{
		{"directories and links", b.addSkeleton},
		{"packages", b.addPackages},
		{"programs", b.addPrograms},
		{"kernel modules", b.addRootModules},
		{"configuration", b.addConfig},
		{"container images", b.addImages},
		{"static pods", b.addManifests},
		{"extra files", b.addFiles},
		{"users", b.addUsers},
	}
	for _, s := range steps {
		if err := s.run(t); err != nil {
			return nil, fmt.Errorf("build root file system: %s: %w", s.what, err)
		}
	}
	return t, nil
}

func (b *Builder) contents() []profiles.Content {
	return []profiles.Content{b.base.Content, b.distro.Content}
}

// addSkeleton makes directories before links, since links such as /bin decide
// where everything after them goes.
func (b *Builder) addSkeleton(t *tree.Tree) error {
	for _, c := range b.contents() {
		for _, d := range c.Dirs {
			mode, err := parseMode(d.Mode, 0o755)
			if err != nil {
				return fmt.Errorf("%s: %w", d.Path, err)
			}
			if err := t.Mkdir(d.Path, mode); err != nil {
				return err
			}
		}
	}
	for _, c := range b.contents() {
		for _, l := range c.Links {
			if err := t.Symlink(l.Target, l.Path); err != nil {
				return err
			}
		}
	}
	return nil
}

// parseMode reads an octal mode with its sticky, setuid and setgid bits.
func parseMode(s string, def fs.FileMode) (fs.FileMode, error) {
	if s == "" {
		return def, nil
	}
	n, err := strconv.ParseUint(s, 8, 32)
	if err != nil || n > 0o7777 {
		return 0, fmt.Errorf("mode %q is not octal", s)
	}
	mode := fs.FileMode(n & 0o777)
	if n&0o1000 != 0 {
		mode |= fs.ModeSticky
	}
	if n&0o2000 != 0 {
		mode |= fs.ModeSetgid
	}
	if n&0o4000 != 0 {
		mode |= fs.ModeSetuid
	}
	return mode, nil
}

// addPrograms adds the agent, which is static, and the distro's own programs.
// What libraries these need, addPackages has added.
func (b *Builder) addPrograms(t *tree.Tree) error {
	if err := t.AddFile(profiles.RootAgentPath, b.c.Agent, 0o755); err != nil {
		return err
	}
	if err := t.Symlink(profiles.RootAgentPath, "/sbin/init"); err != nil {
		return err
	}
	v, err := b.distro.Version(b.c.Profile.Kubernetes.Version)
	if err != nil {
		return err
	}
	programs, err := b.distro.Programs(v, b.c.Profile.Kubernetes.Source)
	if err != nil {
		return err
	}
	for _, p := range programs {
		file, ok := b.c.Inputs.Programs[p.Name]
		if !ok {
			return fmt.Errorf("program %s is not among the inputs", p.Name)
		}
		if err := t.AddFile(p.Path, file, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// addRootModules adds the modules that are loaded after the root file system
// is mounted, and those for people at the machine, each with their list. What
// the initramfs has loaded by then is left out.
func (b *Builder) addRootModules(t *tree.Tree) error {
	early, err := b.modules.resolve(b.initrdModules(profiles.ModeBoot), b.base.Modules.Optional)
	if err != nil {
		return err
	}
	want := slices.Concat(b.base.Modules.Root, b.distro.Content.Modules, b.c.Profile.Kernel.Root)
	late, err := b.modules.resolve(want, nil)
	if err != nil {
		return err
	}
	people, err := b.modules.resolve(nil, b.base.Modules.People)
	if err != nil {
		return err
	}
	for _, l := range []struct {
		path string
		mods []*module
	}{{profiles.RootModulesPath, late}, {profiles.PeopleModulesPath, people}} {
		var list bytes.Buffer
		for _, m := range l.mods {
			if slices.ContainsFunc(early, func(e *module) bool { return e.path == m.path }) {
				continue
			}
			if err := t.WriteFile(m.path, m.data, 0o644); err != nil {
				return err
			}
			fmt.Fprintln(&list, m.path)
		}
		if err := t.WriteFile(l.path, list.Bytes(), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// addConfig fills in the templates and writes the agent's NodeConfig.
func (b *Builder) addConfig(t *tree.Tree) error {
	data := profiles.TemplateData{Profile: b.c.Profile, PauseImage: b.distro.PauseImage, Node: b.distro.Node}
	add := func(files []profiles.ContentFile, read func(string) ([]byte, error)) error {
		for _, f := range files {
			if f.Keep && b.c.Profile.Base == profiles.BaseOCI {
				if n, err := t.Lookup(f.Path); err == nil && n.Mode().IsRegular() {
					continue
				}
			}
			text, err := read(f.Template)
			if err != nil {
				return fmt.Errorf("%s: %w", f.Path, err)
			}
			out, err := fill(f.Template, text, data)
			if err != nil {
				return fmt.Errorf("%s: %w", f.Path, err)
			}
			mode, err := parseMode(f.Mode, 0o644)
			if err != nil {
				return fmt.Errorf("%s: %w", f.Path, err)
			}
			if err := t.WriteFile(f.Path, out, mode); err != nil {
				return err
			}
		}
		return nil
	}
	if err := errors.Join(
		add(b.base.Content.Files, b.base.Template),
		add(b.distro.Content.Files, b.distro.Template),
	); err != nil {
		return err
	}
	p, n := b.c.Profile, b.distro.Node
	for _, program := range n.Prefetch {
		if _, err := t.Lookup(program); err != nil {
			return fmt.Errorf("program to read ahead: %w", err)
		}
	}
	raw, err := json.MarshalIndent(profiles.NodeConfig{
		Image:     p.Name + " " + p.Version,
		Distro:    p.Kubernetes.Distro,
		Version:   p.Kubernetes.Version,
		Sysctls:   n.Sysctls,
		Dirs:      n.Dirs,
		Volatile:  n.Volatile,
		Prefetch:  n.Prefetch,
		Services:  n.Services,
		Import:    n.Import,
		ImagesDir: n.ImagesDir,
		Join:      n.Join,
	}, "", "  ")
	if err != nil {
		return err
	}
	return t.WriteFile(profiles.NodeConfigPath, append(raw, '\n'), 0o644)
}

func fill(name string, text []byte, data profiles.TemplateData) ([]byte, error) {
	tm, err := template.New(name).Option("missingkey=error").Parse(string(text))
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := tm.Execute(&out, data); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// addImages adds the sandbox image, if the distro has none of its own, the
// images of the distro's own list, and the profile's.
func (b *Builder) addImages(t *tree.Tree) error {
	if b.distro.PauseImage != "" {
		if err := b.addProgramImage(t, b.distro.PauseImage, b.c.Pause); err != nil {
			return err
		}
	}
	for _, img := range b.c.Inputs.Lock.Images {
		if !img.Distro {
			continue
		}
		file, ok := b.c.Inputs.Archives[img.Name]
		if !ok {
			return fmt.Errorf("archive of image %s is not among the inputs", img.Name)
		}
		if err := addArchive(t, img.Name, file); err != nil {
			return err
		}
	}
	for _, img := range b.c.Profile.Preload.Images {
		if img.Name == b.distro.PauseImage {
			return fmt.Errorf("%s is the distro's own image and cannot be replaced", img.Name)
		}
		if img.Go != "" {
			file, ok := b.c.Inputs.Sources[img.Name]
			if !ok {
				return fmt.Errorf("program of image %s is not among the inputs", img.Name)
			}
			if err := b.addProgramImage(t, img.Name, file); err != nil {
				return err
			}
			continue
		}
		file, ok := b.c.Inputs.Archives[img.Name]
		if !ok {
			return fmt.Errorf("archive of image %s is not among the inputs", img.Name)
		}
		if err := addArchive(t, img.Name, file); err != nil {
			return err
		}
	}
	return nil
}

func (b *Builder) addProgramImage(t *tree.Tree, name, program string) error {
	var out bytes.Buffer
	err := oci.WriteArchive(&out, oci.Image{
		Name:    name,
		Arch:    b.c.Profile.Arch,
		Program: program,
		Path:    "/" + imageBase(name),
		Epoch:   b.c.Epoch,
	})
	if err != nil {
		return err
	}
	return t.WriteFile(imagePath(name), out.Bytes(), 0o644)
}

func addArchive(t *tree.Tree, name, file string) (err error) {
	if err := t.AddFile(imagePath(name), file, 0o644); err != nil {
		return err
	}
	n, err := t.Lookup(imagePath(name))
	if err != nil {
		return err
	}
	c, err := n.Open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	return oci.CheckArchive(c, name)
}

// imageBase is the last part of an image's repository: hello of
// docker.io/sealift/hello:v1.
func imageBase(name string) string {
	base, _, _ := strings.Cut(path.Base(name), ":")
	return base
}

// imagePath is where the archive of an image lies. References of different
// images give different names: "_" is no separator in a reference.
func imagePath(name string) string {
	return path.Join(profiles.ImagesDir, strings.NewReplacer("/", "__", ":", "@").Replace(name)+".tar")
}
