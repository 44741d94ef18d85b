package inspect

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/pe"
	"github.com/sealift/sealift/image/sbom"
	"github.com/sealift/sealift/image/uki"
)

// Image is what a disk holds, as far as two images are compared by it. It comes
// from the disk alone and proves nothing.
type Image struct {
	Table    *Table
	ESP      []File
	UKI      *manifest.UKI
	Sections []Section // of the UKI, in the order of the file
	Initrd   []File
	Root     []File
	// Packages are those of an SBOM beside the disk, or of dpkg's status in the
	// root file system: name to version.
	Packages map[string]string

	disk Disk
}

// Section is a section of the UKI.
type Section struct {
	Name   string
	SHA256 manifest.SHA256
	Text   string // of the short sections that are text
}

// dpkgStatus is where Debian's package manager keeps its list.
const dpkgStatus = "/var/lib/dpkg/status"

// Load reads what is on a disk.
func Load(ctx context.Context, d Disk) (*Image, error) {
	i := &Image{disk: d}
	var err error
	if i.Table, err = ReadTable(d); err != nil {
		return nil, fmt.Errorf("partition table: %w", err)
	}
	if err := i.readESP(); err != nil {
		return nil, fmt.Errorf("ESP: %w", err)
	}
	p, err := i.partition(manifest.RoleRootA)
	if err != nil {
		return nil, err
	}
	root, err := ReadRoot(ctx, p, RootOptions{Hash: true, Keep: func(path string) bool { return path == dpkgStatus }})
	if err != nil {
		return nil, err
	}
	i.Root = root.Files
	i.Packages = readStatus(root.Kept[dpkgStatus])
	return i, nil
}

// partition returns the place of a label that is there once.
func (i *Image) partition(label string) (*section, error) {
	var found *section
	for _, p := range i.Table.Partitions {
		if p.Name != label {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("there are two partitions %s", label)
		}
		var err error
		if found, err = sectionOf(i.disk, int64(p.First)*SectorSize, int64(p.Last-p.First+1)*SectorSize); err != nil {
			return nil, err
		}
	}
	if found == nil {
		return nil, fmt.Errorf("there is no partition %s", label)
	}
	return found, nil
}

func (i *Image) readESP() error {
	p, err := i.partition(manifest.RoleESP)
	if err != nil {
		return err
	}
	f, err := ReadFAT(p)
	if err != nil {
		return err
	}
	var boot []byte
	for _, e := range f.Entries {
		if e.Dir {
			continue
		}
		b, err := f.ReadFile(e, maxUKI)
		if err != nil {
			return err
		}
		i.ESP = append(i.ESP, File{Path: e.Path, Size: e.Size, SHA256: sha256.Sum256(b)})
		if ok, err := path.Match("/EFI/BOOT/BOOT*.EFI", e.Path); err != nil || !ok {
			continue
		}
		if boot != nil {
			return errors.New("it has two boot files")
		}
		boot = b
	}
	if boot == nil {
		return errors.New("it has no /EFI/BOOT/BOOT*.EFI")
	}
	return i.readUKI(boot)
}

func (i *Image) readUKI(image []byte) error {
	f, err := pe.Parse(image)
	if err != nil {
		return err
	}
	for _, s := range f.Sections {
		out := Section{Name: s.Name, SHA256: sha256.Sum256(s.Data())}
		switch s.Name {
		case ".cmdline", ".osrel", ".uname", ".sbat", ".pcrpkey":
			if len(s.Data()) <= 64<<10 {
				out.Text = strings.TrimRight(string(s.Data()), "\x00\n")
			}
		case ".initrd":
			if i.Initrd, _, err = ReadInitrd(s.Data(), nil); err != nil {
				return err
			}
		}
		i.Sections = append(i.Sections, out)
	}
	i.UKI, err = uki.Predict(image)
	return err
}

// readStatus reads names and versions of dpkg's list (deb-control(5)).
func readStatus(b []byte) map[string]string {
	out := map[string]string{}
	var name string
	for line := range strings.Lines(string(b)) {
		line = strings.TrimRight(line, "\n")
		switch key, value, _ := strings.Cut(line, ": "); key {
		case "Package":
			name = value
		case "Version":
			if name != "" {
				out[name] = value
			}
		case "":
			name = ""
		}
	}
	return out
}

// ReadSBOM returns the names and versions that an SBOM lists.
func ReadSBOM(b []byte) (map[string]string, error) {
	doc, err := sbom.Read(b)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, p := range doc.PackageNames {
		name, version, _ := strings.Cut(p, " ")
		// Programs may be linked from several versions of one module.
		if old, there := out[name]; there && !slices.Contains(strings.Fields(old), version) {
			version = old + " " + version
		} else if there {
			version = old
		}
		out[name] = version
	}
	return out, nil
}
