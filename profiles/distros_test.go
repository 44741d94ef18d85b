package profiles

import (
	"bytes"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"text/template"
)

func TestEmbeddedDistrosAndBasesLoad(t *testing.T) {
	if !slices.Equal(Distros(), []string{"k0s", "k3s", "kubernetes", "rke2"}) || !slices.Contains(Bases(), "minimal") {
		t.Fatalf("distros %v, bases %v", Distros(), Bases())
	}
	p, err := Parse("shop.yaml", []byte(valid))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range Bases() {
		b, err := LoadBase(name)
		if err != nil {
			t.Fatal(err)
		}
		checkContent(t, b.Content, b.Template, TemplateData{Profile: p})
	}
	for _, name := range Distros() {
		d, err := LoadDistro(name)
		if err != nil {
			t.Fatal(err)
		}
		checkContent(t, d.Content, d.Template, TemplateData{Profile: p, PauseImage: d.PauseImage, Node: d.Node})
		checkNode(t, d)
		for i := range d.Versions {
			checkVersion(t, d, &d.Versions[i])
		}
	}
	for _, name := range []string{"", "..", "kubernetes/v1.34", "none"} {
		if _, err := LoadDistro(name); err == nil {
			t.Errorf("distro %q was loaded", name)
		}
	}
}

func checkContent(t *testing.T, c Content, read func(string) ([]byte, error), data TemplateData) {
	t.Helper()
	var paths []string
	for _, f := range c.Files {
		paths = append(paths, f.Path)
		text, err := read(f.Template)
		if err != nil {
			t.Error(err)
			continue
		}
		tm, err := template.New(f.Template).Option("missingkey=error").Parse(string(text))
		if err != nil {
			t.Error(err)
			continue
		}
		var out bytes.Buffer
		if err := tm.Execute(&out, data); err != nil {
			t.Error(err)
		}
		if strings.Contains(out.String(), "<no value>") {
			t.Errorf("%s: a value is missing:\n%s", f.Template, out.String())
		}
	}
	for _, l := range c.Links {
		paths = append(paths, l.Path)
	}
	for _, d := range c.Dirs {
		paths = append(paths, d.Path)
	}
	for _, p := range c.Packages {
		paths = append(paths, p.Files...)
	}
	for _, p := range paths {
		if !path.IsAbs(p) || path.Clean(p) != p {
			t.Errorf("path %q is not clean and absolute", p)
		}
	}
}

// checkNode holds what the agent relies on.
func checkNode(t *testing.T, d *Distro) {
	t.Helper()
	for _, dir := range d.Node.Dirs {
		if !strings.HasPrefix(dir, "/var/") && !strings.HasPrefix(dir, "/run/") {
			t.Errorf("distro %s: directory %s is not below /var or /run", d.Name, dir)
		}
	}
	for _, dir := range d.Node.Volatile {
		if !strings.HasPrefix(dir, "/var/") || path.Clean(dir) != dir {
			t.Errorf("distro %s: volatile directory %s is not below /var", d.Name, dir)
		}
	}
	// Static pods are files of the image, and the state lies over /var.
	if m := d.Node.Manifests; m != "" && (!strings.HasPrefix(m, "/etc/") || path.Clean(m) != m) {
		t.Errorf("distro %s: directory of static pods %s is not below /etc", d.Name, m)
	}
	vars := regexp.MustCompile(`\$\{[^}]*\}`)
	known := []string{VarNodeIP, VarNodeName}
	if d.Node.Join.Server != "" {
		known = append(known, VarJoinServer, VarJoinHost)
	}
	for _, s := range d.Node.Services {
		if s.Name == "" || len(s.Args) == 0 || !path.IsAbs(s.Args[0]) {
			t.Errorf("distro %s: service %+v has no name or no program", d.Name, s)
		}
		for _, v := range vars.FindAllString(strings.Join(s.Args, " "), -1) {
			if !slices.Contains(known, v) {
				t.Errorf("distro %s: service %s: unknown variable %s", d.Name, s.Name, v)
			}
		}
	}
	if !strings.HasPrefix(d.Node.Join.Bootstrap, "/run/") || !strings.HasPrefix(d.Node.Join.CA, "/var/") {
		t.Errorf("distro %s: join paths %+v: the token must be below /run, the CA below /var", d.Name, d.Node.Join)
	}
}

func checkVersion(t *testing.T, d *Distro, v *DistroVersion) {
	t.Helper()
	if len(d.Sources(v)) == 0 {
		t.Errorf("distro %s %s can be had from nowhere", d.Name, v.Version)
	}
	if len(v.Builds) == 0 {
		return
	}
	m, err := d.Module(v)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(m.Mod, []byte(v.Version)) {
		t.Errorf("distro %s: go.mod of %s does not name it", d.Name, v.Version)
	}
	if !strings.Contains(v.LDFlags, v.Version) {
		t.Errorf("distro %s %s: the linker flags do not set the version", d.Name, v.Version)
	}
	for _, b := range v.Builds {
		if (b.Package == "") == (b.Main == "") {
			t.Errorf("distro %s: build %s needs exactly one of package and main", d.Name, b.Name)
		}
	}
}
