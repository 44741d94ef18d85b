package sbom

import (
	"cmp"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/tree"
)

// item is a file on its way into the inventory.
type item struct {
	file    File
	open    func() (tree.Content, error)
	program *program
	archive *archive
}

// Scan makes the inventory of an image. It reads every file once, and an
// archive of container images twice.
func Scan(ctx context.Context, in Input) (*Inventory, error) {
	if err := in.check(); err != nil {
		return nil, fmt.Errorf("inventory: %w", err)
	}
	items, err := in.items()
	if err != nil {
		return nil, fmt.Errorf("inventory: %w", err)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(in.Workers, 1))
	for _, it := range items {
		g.Go(func() error {
			if err := gctx.Err(); err != nil {
				return err
			}
			if err := it.read(gctx, in.isArchive(it.file.Path), in.TempDir); err != nil {
				return fmt.Errorf("%s: %w", it.file.Path, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("inventory: %w", err)
	}
	v := &Inventory{Name: in.Name, Version: in.Version, Arch: in.Arch, Digest: in.Digest, Epoch: in.Epoch.UTC(), Tool: in.Tool}
	c := collection{v: v, at: map[string]int{}, arch: in.Arch}
	packages := in.Packages
	if in.Base != nil {
		base, err := in.Base.read(ctx)
		if err != nil {
			return nil, fmt.Errorf("inventory: base image %s: %w", in.Base.Name, err)
		}
		packages = append(slices.Clone(packages), base.packages...)
		c.base(in.Base, base)
	}
	c.packages(packages)
	for _, it := range items {
		c.item(it)
	}
	c.sort()
	return v, nil
}

// items lists the files of all places.
func (in *Input) items() ([]*item, error) {
	var items []*item
	for _, p := range in.Places {
		if p.Tree == nil {
			return nil, fmt.Errorf("place %s has no tree", p.Name)
		}
		err := p.Tree.Walk(func(name string, n *tree.Node) error {
			if n.Mode().IsRegular() {
				items = append(items, &item{
					file: File{Path: path.Join(p.Name, name), Size: n.Size(), Executable: n.Mode()&0o111 != 0},
					open: n.Open,
				})
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	for _, b := range in.Blobs {
		items = append(items, &item{
			file: File{Path: path.Join(b.Place, b.Name), Size: int64(len(b.Data))},
			open: func() (tree.Content, error) { return content(b.Data), nil },
		})
	}
	return items, nil
}

// isArchive reports whether a file lies where archives of container images do.
func (in *Input) isArchive(name string) bool {
	_, in2, ok := strings.Cut(name, "/")
	return ok && in.ImagesDir != "" && path.Join("/", path.Dir(in2)) == path.Clean(in.ImagesDir)
}

// read hashes the file and looks into it.
func (it *item) read(ctx context.Context, isArchive bool, temp string) (err error) {
	c, err := it.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	n, err := it.file.hash(readerContext{ctx, c})
	if err != nil {
		return err
	}
	if n != it.file.Size {
		return fmt.Errorf("got %d bytes, want %d", n, it.file.Size)
	}
	it.program = readProgram(c, n)
	if isArchive {
		it.archive, err = readArchive(ctx, c, n, temp)
	}
	return err
}

// readerContext is a reader that fails once its context has ended.
type readerContext struct {
	ctx context.Context
	r   io.Reader
}

func (r readerContext) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

func (f *File) hash(r io.Reader) (int64, error) {
	h1, h256 := sha1.New(), sha256.New()
	n, err := io.Copy(io.MultiWriter(h1, h256), r)
	f.SHA1, f.SHA256 = [20]byte(h1.Sum(nil)), manifest.SHA256(h256.Sum(nil))
	return n, err
}

// collection puts files and components together.
type collection struct {
	v     *Inventory
	at    map[string]int // index in v.Components, by ID
	owner map[manifest.SHA256]*owners

	baseID    string // of the base image, if there is one
	baseFiles map[manifest.SHA256]bool
	arch      string
}

// owned is a file of a package.
type owned struct{ id, path string }

// owners are the files of packages that have one content. A base image may have
// one content in very many files, so they are found by name.
type owners struct {
	all            []owned // in order
	byPath, byBase map[string]int
}

// index finds the first of each path and of each last part of one.
func (o *owners) index() {
	if o.byPath != nil {
		return
	}
	slices.SortFunc(o.all, func(a, b owned) int { return cmp.Or(cmp.Compare(a.id, b.id), cmp.Compare(a.path, b.path)) })
	o.byPath, o.byBase = map[string]int{}, map[string]int{}
	for i, f := range slices.Backward(o.all) {
		o.byPath[f.path], o.byBase[path.Base(f.path)] = i, i
	}
}

// at returns the first file at any of these places.
func (o *owners) at(names ...string) (id string, ok bool) {
	first := len(o.all)
	for _, name := range names {
		if i, ok := o.byPath[name]; ok {
			first = min(first, i)
		}
	}
	if first == len(o.all) {
		return "", false
	}
	return o.all[first].id, true
}

// add adds a component that is not there yet.
func (c *collection) add(n Component) string {
	if _, ok := c.at[n.ID]; !ok {
		c.at[n.ID] = len(c.v.Components)
		c.v.Components = append(c.v.Components, n)
	}
	return n.ID
}

func (c *collection) packages(all []Package) {
	c.owner = map[manifest.SHA256]*owners{}
	for i := range all {
		p := &all[i]
		id := c.add(Component{
			ID: "deb-" + identifier(p.Name+"_"+p.Version+"_"+p.Arch), Kind: KindDebian, Name: p.Name, Version: p.Version, Vendor: p.vendor(),
			PURL: debPURL(p), SHA256: p.SHA256, URL: p.URL, Home: p.Homepage,
			Source: p.Source, SourceVersion: p.SourceVersion, Licenses: p.Licenses,
		})
		for digest, paths := range p.Files {
			o := c.owner[digest]
			if o == nil {
				o = &owners{}
				c.owner[digest] = o
			}
			for _, name := range paths {
				o.all = append(o.all, owned{id, name})
			}
		}
	}
}

// from returns the package that a file was taken from: one that has a file of
// the same content, and best of the same name. An empty file is everybody's
// and so needs the whole path.
func (c *collection) from(f *File) string {
	found := ""
	if o := c.owner[f.SHA256]; o != nil && len(o.all) > 0 {
		o.index()
		_, name, _ := strings.Cut(f.Path, "/")
		places := []string{name}
		if inUsr, ok := strings.CutPrefix(name, "usr/"); ok {
			places = append(places, inUsr)
		}
		if id, ok := o.at(places...); ok {
			found = id
		} else if f.Size > 0 {
			found = o.all[o.byBase[path.Base(name)]].id // the first of all if none has the name
		}
	}
	if found == "" && c.baseFiles[f.SHA256] {
		return c.baseID
	}
	return found
}

// base adds the base image.
func (c *collection) base(b *Base, content *baseContent) {
	repository, tag := splitReference(b.Name)
	c.baseID = c.add(Component{
		ID: "base-" + identifier(b.Name), Kind: KindImage, Name: repository, Version: tag, SHA256: b.Digest,
		PURL: ociPURL(b.Name, "sha256:"+b.Digest.String(), c.arch),
	})
	c.baseFiles = content.files
}

func (c *collection) item(it *item) {
	f := it.file
	f.From = c.from(&f)
	switch {
	case it.archive != nil:
		c.archive(&f, it.archive)
	case it.program != nil:
		f.From = c.program(&f, it.program)
	}
	c.v.Files = append(c.v.Files, f)
}

// program adds the modules of a Go program, and the program itself if it is in
// no package. It returns the ID of what the file comes from.
func (c *collection) program(f *File, p *program) string {
	for _, m := range p.modules {
		c.add(m)
	}
	if f.From == "" {
		return c.add(p.component(f))
	}
	deb := &c.v.Components[c.at[f.From]]
	for _, id := range p.ids() {
		if !slices.Contains(deb.DependsOn, id) {
			deb.DependsOn = append(deb.DependsOn, id)
		}
	}
	return f.From
}

// archive adds the container images of an archive, and the files in them.
func (c *collection) archive(f *File, a *archive) {
	for _, img := range a.images {
		repository, tag := splitReference(img.name)
		n := Component{
			Kind: KindImage, Name: repository, Version: tag, PURL: ociPURL(img.name, img.digest, c.arch),
			ID: "image-" + identifier(img.name),
		}
		if d, ok := strings.CutPrefix(img.digest, "sha256:"); ok {
			// A digest that is none leaves the field unset.
			_ = n.SHA256.UnmarshalText([]byte(d))
		}
		for _, inner := range img.files {
			file := inner.file
			file.Path = path.Join("images", img.name, file.Path)
			file.From = n.ID
			if inner.program != nil {
				id := c.program(&File{Path: file.Path, SHA256: file.SHA256}, inner.program)
				n.DependsOn = append(n.DependsOn, id)
				file.From = id
			}
			c.v.Files = append(c.v.Files, file)
		}
		if f.From == "" {
			f.From = n.ID
		}
		c.add(n)
	}
}

func (c *collection) sort() {
	for i := range c.v.Components {
		d := c.v.Components[i].DependsOn
		slices.Sort(d)
		c.v.Components[i].DependsOn = slices.Compact(d)
	}
	kinds := []string{KindDebian, KindProgram, KindImage, KindModule}
	slices.SortFunc(c.v.Components, func(a, b Component) int {
		return cmp.Or(cmp.Compare(slices.Index(kinds, a.Kind), slices.Index(kinds, b.Kind)), cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	slices.SortFunc(c.v.Files, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
}
