package sbom

import (
	"debug/buildinfo"
	"debug/elf"
	"io"
	"path"
	"runtime/debug"
	"strings"
)

// program is what a Go program says about itself.
type program struct {
	info    *debug.BuildInfo
	modules []Component
}

// readProgram returns what a Go program says about itself, or nil if the file
// is none. The file may be damaged.
func readProgram(r io.ReaderAt, size int64) *program {
	var magic [4]byte
	if size < 64 {
		return nil
	}
	if _, err := r.ReadAt(magic[:], 0); err != nil || string(magic[:]) != elf.ELFMAG {
		return nil
	}
	info, err := buildinfo.Read(r)
	if err != nil {
		return nil
	}
	p := &program{info: info}
	p.add("stdlib", strings.TrimPrefix(info.GoVersion, "go"), "")
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		p.add(m.Path, m.Version, m.Sum)
	}
	return p
}

// add adds a module. One without a version is of the source tree that the
// program was built from, and the program stands for it.
func (p *program) add(modulePath, version, sum string) {
	version, _, _ = strings.Cut(version, " ") // "1.26.8 X:experiment"
	if modulePath == "" || version == "" || version == "(devel)" {
		return
	}
	p.modules = append(p.modules, Component{
		ID: "go-" + identifier(modulePath+"@"+version), Kind: KindModule,
		Name: modulePath, Version: version, Sum: sum, PURL: goPURL(modulePath, version, ""),
	})
}

// ids returns the IDs of the modules.
func (p *program) ids() []string {
	ids := make([]string, len(p.modules))
	for i, m := range p.modules {
		ids[i] = m.ID
	}
	return ids
}

// component returns the program itself. Its version is that of the module that
// its main package is of: a dependency if a distro builds somebody else's
// program in a module of its own.
func (p *program) component(f *File) Component {
	pkg := p.info.Path
	if pkg == "" || pkg == "command-line-arguments" {
		pkg = path.Base(f.Path)
	}
	module, version := "", ""
	mods := []*debug.Module{&p.info.Main}
	mods = append(mods, p.info.Deps...)
	for _, m := range mods {
		if (pkg == m.Path || strings.HasPrefix(pkg, m.Path+"/")) && len(m.Path) > len(module) {
			module, version = m.Path, m.Version
		}
	}
	if version == "(devel)" {
		version = ""
	}
	c := Component{
		Kind: KindProgram, Name: path.Base(pkg), Version: version, SHA256: f.SHA256, Package: pkg,
		GoVersion: p.info.GoVersion, DependsOn: p.ids(),
	}
	c.ID = identifier("program-" + c.Name + "-" + f.SHA256.String()[:12])
	if module != "" {
		c.PURL = goPURL(module, version, strings.TrimPrefix(strings.TrimPrefix(pkg, module), "/"))
	} else {
		c.PURL = goPURL(pkg, version, "")
	}
	return c
}
