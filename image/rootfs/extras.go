package rootfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/sealift/sealift/image/tree"
	"github.com/sealift/sealift/profiles"
)

// addFiles adds the profile's extra files.
func (b *Builder) addFiles(t *tree.Tree) error {
	programs, err := b.programPaths(t)
	if err != nil {
		return err
	}
	for _, f := range b.c.Profile.Files {
		real, err := realPath(t, f.Path)
		if err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
		old, err := t.Lookup(real)
		switch {
		case profiles.Reserved(real):
			return fmt.Errorf("%s: /%s is the image builder's, or below a mount point", f.Path, strings.TrimPrefix(real, "/"))
		case programs[real]:
			return fmt.Errorf("%s is a program of distro %s, and its version is what the image says", f.Path, b.distro.Name)
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return err
		case old.IsDir():
			return fmt.Errorf("%s is a directory", f.Path)
		case !f.Replace:
			return fmt.Errorf("%s is in the image already: set replace: true if it is meant to be replaced", f.Path)
		}
		mode, err := parseMode(f.Mode, 0o644)
		if err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
		if f.Source == "" {
			err = t.WriteFile(real, []byte(f.Content), mode)
		} else {
			err = b.addSource(t, real, f.Source, mode)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// addSource adds a file that lay beside the profile.
func (b *Builder) addSource(t *tree.Tree, name, source string, mode fs.FileMode) error {
	file, ok := b.c.Inputs.Files[source]
	if !ok {
		return fmt.Errorf("source %s is not among the inputs", source)
	}
	return t.AddFile(name, file, mode)
}

// AttestCA returns the certificates, in PEM, that the profile wants to be trusted
// beside the fleet's own CA, or nothing.
func (b *Builder) AttestCA() (_ []byte, err error) {
	source := b.c.Profile.Attest.CA
	if source == "" {
		return nil, nil
	}
	file, ok := b.c.Inputs.Files[source]
	if !ok {
		return nil, fmt.Errorf("source %s is not among the inputs", source)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("source %s: %w", source, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	text, err := io.ReadAll(io.LimitReader(f, profiles.MaxCA+1))
	if err != nil {
		return nil, fmt.Errorf("source %s: %w", source, err)
	}
	ca, err := profiles.ParseCA(text)
	if err != nil {
		return nil, fmt.Errorf("source %s: %w", source, err)
	}
	return ca, nil
}

// programPaths returns where the distro's programs are.
func (b *Builder) programPaths(t *tree.Tree) (map[string]bool, error) {
	v, err := b.distro.Version(b.c.Profile.Kubernetes.Version)
	if err != nil {
		return nil, err
	}
	programs, err := b.distro.Programs(v, b.c.Profile.Kubernetes.Source)
	if err != nil {
		return nil, err
	}
	out := map[string]bool{}
	for _, p := range programs {
		real, err := realPath(t, p.Path)
		if err != nil {
			return nil, err
		}
		out[real] = true
	}
	return out, nil
}

// realPath returns where a path is once the links in the directories above it
// are followed, those of them that are there.
func realPath(t *tree.Tree, name string) (string, error) {
	dir, rest := path.Dir(name), path.Base(name)
	for {
		_, real, err := t.Resolve(dir)
		if err == nil {
			return path.Join("/", real, rest), nil
		}
		if !errors.Is(err, fs.ErrNotExist) || dir == "/" {
			return "", err
		}
		if n, err := t.Lookup(dir); err == nil && n.Mode()&fs.ModeSymlink != 0 {
			return "", fmt.Errorf("%s is a link to nothing", dir)
		}
		dir, rest = path.Dir(dir), path.Join(path.Base(dir), rest)
	}
}

// addManifests adds the profile's static pods, where the distro's kubelet
// looks for them.
func (b *Builder) addManifests(t *tree.Tree) error {
	manifests := b.c.Profile.Preload.Manifests
	dir := b.distro.Node.Manifests
	if len(manifests) > 0 && dir == "" {
		return fmt.Errorf("distro %s takes no static pods from the image", b.distro.Name)
	}
	for _, m := range manifests {
		name := path.Join(dir, m.Name+".yaml")
		var err error
		if m.Source == "" {
			err = t.WriteFile(name, []byte(m.Content), 0o600)
		} else {
			err = b.addSource(t, name, m.Source, 0o600)
		}
		if err != nil {
			return err
		}
		text, err := t.ReadFile(name, profiles.MaxManifest)
		if err == nil {
			err = profiles.CheckStaticPod(text)
		}
		if err != nil {
			return fmt.Errorf("manifest %s: %w", m.Name, err)
		}
	}
	return nil
}

// maxAccounts bounds a passwd or group file, in bytes.
const maxAccounts = 1 << 20

// addUsers adds the profile's users to those of the base. Where there are other
// accounts than those of the minimal base, each is locked: /etc/shadow is made
// anew, and no hash of a password comes from a base image.
func (b *Builder) addUsers(t *tree.Tree) error {
	p := b.c.Profile
	if len(p.Users) == 0 && p.Base != profiles.BaseOCI {
		return nil
	}
	accounts, err := readAccounts(t, "/etc/passwd", 7)
	if err != nil {
		return err
	}
	groups, err := readAccounts(t, "/etc/group", 4)
	if err != nil {
		return err
	}
	for _, u := range p.Users {
		shell := u.Shell
		if shell == "" {
			shell = "/usr/sbin/nologin"
		} else if n, _, err := t.Resolve(shell); err != nil {
			return fmt.Errorf("user %s: shell: %w", u.Name, err)
		} else if !n.Mode().IsRegular() || n.Mode()&0o111 == 0 {
			return fmt.Errorf("user %s: shell %s is no program", u.Name, shell)
		}
		id := strconv.Itoa(u.UID)
		if err := accounts.add(u.Name, id, u.Name, "x", id, id, "", "/nonexistent", shell); err != nil {
			return err
		}
		if err := groups.add(u.Name, id, u.Name, "x", id, ""); err != nil {
			return err
		}
	}
	var shadow, gshadow strings.Builder
	for _, f := range accounts.lines {
		f[1] = "x"
		fmt.Fprintf(&shadow, "%s:!*:::::::\n", f[0])
	}
	for _, f := range groups.lines {
		f[1] = "x"
		fmt.Fprintf(&gshadow, "%s:!*::%s\n", f[0], f[3])
	}
	for _, name := range []string{"/etc/passwd-", "/etc/group-", "/etc/shadow-", "/etc/gshadow-"} {
		if err := t.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return errors.Join(
		t.WriteFile("/etc/passwd", accounts.encode(), 0o644),
		t.WriteFile("/etc/group", groups.encode(), 0o644),
		t.WriteFile("/etc/shadow", []byte(shadow.String()), 0o600),
		t.WriteFile("/etc/gshadow", []byte(gshadow.String()), 0o600),
	)
}

// accounts are the lines of passwd(5) or group(5) as fields.
type accounts struct {
	file  string
	lines [][]string
}

// readAccounts reads a file of lines with as many fields.
func readAccounts(t *tree.Tree, file string, fields int) (*accounts, error) {
	text, err := t.ReadFile(file, maxAccounts)
	if err != nil {
		return nil, err
	}
	a := &accounts{file: file}
	for i, line := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
		f := strings.Split(line, ":")
		if len(f) != fields || f[0] == "" {
			return nil, fmt.Errorf("%s: line %d has %d fields, want %d", file, i+1, len(f), fields)
		}
		a.lines = append(a.lines, f)
	}
	return a, nil
}

// add appends a line for a name and a number that are not there yet.
func (a *accounts) add(name, id string, fields ...string) error {
	for _, f := range a.lines {
		if f[0] == name || f[2] == id {
			return fmt.Errorf("user %s, %s: %s has %s with number %s already", name, id, a.file, f[0], f[2])
		}
	}
	a.lines = append(a.lines, fields)
	return nil
}

func (a *accounts) encode() []byte {
	var b strings.Builder
	for _, f := range a.lines {
		b.WriteString(strings.Join(f, ":") + "\n")
	}
	return []byte(b.String())
}
