package profiles

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
)

// data holds the distros and the bases. A new one is a directory here and a
// test, not a change of code.
//
//go:embed distros bases
var data embed.FS

// KindDistro and KindBase are the kinds of the files in distros and bases.
const (
	KindDistro = "Distro"
	KindBase   = "Base"
)

// Base is what every image holds beside the distro: the files that the agent
// needs of Debian, and the kernel modules for the machines that it runs on.
// It is data: see bases/NAME/base.yaml.
type Base struct {
	APIVersion string      `yaml:"apiVersion"`
	Kind       string      `yaml:"kind"`
	Name       string      `yaml:"name"`
	Content    Content     `yaml:"content"`
	Modules    BaseModules `yaml:"modules"`
	// Stub is the package and file of systemd-stub, which turns kernel and
	// initramfs into a UKI. The image builder reads it; images do not hold it.
	Stub PackageFile `yaml:"stub"`

	dir fs.FS
}

// BaseModules are kernel modules by the place that loads them, without their
// dependencies. One that the kernel package has neither as a file nor built in
// is an error, except in Optional and Media.
type BaseModules struct {
	Boot    []string `yaml:"boot"`    // initramfs of the disk's UKI
	Install []string `yaml:"install"` // initramfs of the installer
	Root    []string `yaml:"root"`    // after the root file system is mounted
	// Optional are drivers for both initramfs that not every kernel package has.
	Optional []string `yaml:"optional"`
	// Media are optional drivers for what an installation medium is in. Only
	// the installer has them: a node needs no USB sticks.
	Media []string `yaml:"media"`
	// People are optional drivers for keyboards, in the root file system. The
	// agent loads them when people are to type something, and at no other time.
	People []string `yaml:"people"`
}

// PackageFile is one file of a Debian package. In Path, ${ARCH} stands for the
// architecture as UEFI file names spell it: x64.
type PackageFile struct {
	Package string `yaml:"package"`
	Path    string `yaml:"path"`
}

// Content is what a base or a distro puts into the root file system.
type Content struct {
	Packages []PackageFiles `yaml:"packages"`
	// Exclude are packages that others depend on and that no kept file needs.
	// They and what only they depend on are not locked.
	Exclude []string      `yaml:"exclude"`
	Dirs    []ContentDir  `yaml:"dirs"`
	Files   []ContentFile `yaml:"files"`
	Links   []ContentLink `yaml:"links"`
	Modules []string      `yaml:"modules"` // kernel modules loaded after the root file system is mounted
}

// PackageFiles are the files of a Debian package that are kept. The shared
// libraries that they need are found and kept as well.
type PackageFiles struct {
	Name  string   `yaml:"name"`
	Files []string `yaml:"files"` // absolute paths in the package
}

// ContentDir is a directory: a mount point, or a place that must exist.
type ContentDir struct {
	Path string `yaml:"path"`
	Mode string `yaml:"mode"` // octal; 0755 if empty
}

// ContentFile is a file made from a template (text/template) that lies beside
// the description. The data is a TemplateData.
type ContentFile struct {
	Path     string `yaml:"path"`
	Template string `yaml:"template"`
	Mode     string `yaml:"mode"` // octal; 0644 if empty
	// Keep leaves a file of that path as the image of base oci has it.
	Keep bool `yaml:"keep"`
}

// ContentLink is a symbolic link.
type ContentLink struct {
	Path   string `yaml:"path"`
	Target string `yaml:"target"`
}

// TemplateData is what the templates of a base or a distro can use.
type TemplateData struct {
	Profile    *Profile
	PauseImage string
	Node       DistroNode
}

// Distro describes how a Kubernetes distro becomes part of an image and what
// runs it on the node. It is data: see distros/NAME/distro.yaml.
type Distro struct {
	APIVersion string          `yaml:"apiVersion"`
	Kind       string          `yaml:"kind"`
	Name       string          `yaml:"name"`
	Versions   []DistroVersion `yaml:"versions"` // newest first
	// Release is how the vendor publishes the distro as files. Optional for a
	// distro that is built from Go modules.
	Release *Release `yaml:"release"`
	Content Content  `yaml:"content"`
	// PauseImage is the reference of the sandbox image. Every image with this
	// distro is preloaded with one, which the builder makes itself. Empty for a
	// distro whose own list of images has it.
	PauseImage string     `yaml:"pauseImage"`
	Node       DistroNode `yaml:"node"`

	dir fs.FS
}

// DistroVersion is one version of a distro and its Go builds, if it has any.
type DistroVersion struct {
	Version string `yaml:"version"`
	// Modules is the directory, beside distro.yaml, of go.mod.in and go.sum.in.
	Modules string    `yaml:"modules"`
	LDFlags string    `yaml:"ldflags"`
	Builds  []GoBuild `yaml:"builds"`
}

// GoBuild is one static Go command. Exactly one of Package and Main is set.
type GoBuild struct {
	Name    string `yaml:"name"`    // of the program
	Package string `yaml:"package"` // import path of the main package
	Main    string `yaml:"main"`    // file beside go.mod.in that becomes the main package
	// Path is where the program goes in the root file system. Empty for the
	// control plane, which nodes do not run.
	Path string `yaml:"path"`
}

// DistroNode is what the agent does for the distro; NodeConfig explains it.
type DistroNode struct {
	Sysctls  map[string]string `yaml:"sysctls"`
	Dirs     []string          `yaml:"dirs"`
	Volatile []string          `yaml:"volatile"`
	Prefetch []string          `yaml:"prefetch"`
	Services []Service         `yaml:"services"`
	Import   []string          `yaml:"import"`
	// ImagesDir is where a distro imports archives from by itself; it then has
	// no Import.
	ImagesDir string `yaml:"imagesDir"`
	// Manifests is the directory of the root file system in which the distro's
	// kubelet looks for static pods. Empty for a distro that takes none.
	Manifests string    `yaml:"manifests"`
	Join      JoinPaths `yaml:"join"`
}

// GoModule is the module in which a distro's Go commands are built.
type GoModule struct {
	Mod, Sum []byte            // go.mod and go.sum
	Mains    map[string][]byte // name of a GoBuild with Main: the source of its main package
}

// Distros returns the names of the distros that profiles can choose.
func Distros() []string { return subdirs("distros") }

// The base that lays the content of another over the tree of an OCI image.
const (
	BaseOCI   = "oci"
	underlaid = "minimal"
)

// Bases returns the names of the bases that profiles can choose.
func Bases() []string { return append(subdirs("bases"), BaseOCI) }

func subdirs(dir string) []string {
	entries, err := data.ReadDir(dir)
	if err != nil {
		panic("profiles: BUG: " + err.Error()) // embedded: it is there or nothing was built
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}

// LoadDistro reads an embedded distro.
func LoadDistro(name string) (*Distro, error) {
	d := &Distro{}
	dir, err := loadEmbedded("distros", name, "distro.yaml", d)
	if err != nil {
		return nil, err
	}
	d.dir = dir
	if d.Release != nil {
		if err := d.Release.check(); err != nil {
			return nil, fmt.Errorf("distros/%s: %w", name, err)
		}
	}
	return d, checkHeader("distros/"+name, d.APIVersion, d.Kind, KindDistro, d.Name, name)
}

// LoadBase reads an embedded base.
func LoadBase(name string) (*Base, error) {
	if name == BaseOCI {
		name = underlaid
	}
	b := &Base{}
	dir, err := loadEmbedded("bases", name, "base.yaml", b)
	if err != nil {
		return nil, err
	}
	b.dir = dir
	return b, checkHeader("bases/"+name, b.APIVersion, b.Kind, KindBase, b.Name, name)
}

func checkHeader(file, version, kind, wantKind, name, wantName string) error {
	if version != APIVersion || kind != wantKind || name != wantName {
		return fmt.Errorf("%s: header is %s %s %s, want %s %s %s", file, version, kind, name, APIVersion, wantKind, wantName)
	}
	return nil
}

func loadEmbedded(parent, name, file string, v any) (fs.FS, error) {
	if name == "" || strings.ContainsAny(name, "/.") {
		return nil, fmt.Errorf("%s %q: %w", parent, name, fs.ErrNotExist)
	}
	full := path.Join(parent, name, file)
	b, err := data.ReadFile(full)
	if err != nil {
		return nil, fmt.Errorf("%s %q: %w", parent, name, err)
	}
	if err := decodeStrict(full, b, v).err(); err != nil {
		return nil, err
	}
	return fs.Sub(data, path.Join(parent, name))
}

// Template returns a template that the distro's content names.
func (d *Distro) Template(name string) ([]byte, error) { return fs.ReadFile(d.dir, name) }

// Template returns a template that the base's content names.
func (b *Base) Template(name string) ([]byte, error) { return fs.ReadFile(b.dir, name) }

// Version returns the description of one version. A version that the distro
// does not list is still known if the vendor publishes such; else the error
// names those that are listed.
func (d *Distro) Version(version string) (*DistroVersion, error) {
	var known []string
	for i := range d.Versions {
		if d.Versions[i].Version == version {
			return &d.Versions[i], nil
		}
		known = append(known, d.Versions[i].Version)
	}
	if d.Release != nil && d.Release.Matches(version) {
		return &DistroVersion{Version: version}, nil
	}
	return nil, fmt.Errorf("distro %s has no version %q, only %s", d.Name, version, strings.Join(known, ", "))
}

// Module returns the Go module of a version. It is an error if the version has
// no Go builds.
func (d *Distro) Module(v *DistroVersion) (*GoModule, error) {
	m := &GoModule{Mains: map[string][]byte{}}
	var errs []error
	read := func(name string) []byte {
		b, err := fs.ReadFile(d.dir, path.Join(v.Modules, name))
		errs = append(errs, err)
		return b
	}
	m.Mod, m.Sum = read("go.mod.in"), read("go.sum.in")
	for _, b := range v.Builds {
		if b.Main != "" {
			m.Mains[b.Name] = read(b.Main)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("distro %s %s: %w", d.Name, v.Version, err)
	}
	return m, nil
}
