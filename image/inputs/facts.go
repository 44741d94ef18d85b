package inputs

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/sbom"
	"github.com/sealift/sealift/profiles"
)

// memoFacts is the kind of memo of packageFacts, by the package's digest. The
// number grows when what is read out of a package changes.
const memoFacts = "deb-facts-1"

// Bounds of what is read out of a package.
const (
	maxControl = 1 << 20  // bytes of the control file
	maxFacts   = 64 << 20 // bytes of encoded facts
)

// packageFacts is what an inventory wants to know of a package, and what is
// remembered of it in the cache.
type packageFacts struct {
	Source        string                       `json:"source"`
	SourceVersion string                       `json:"sourceVersion"`
	Homepage      string                       `json:"homepage,omitempty"`
	Licenses      []sbom.License               `json:"licenses,omitempty"`
	CopyrightOf   string                       `json:"copyrightOf,omitempty"` // package that the documentation is a link to
	Files         map[manifest.SHA256][]string `json:"files"`
}

// Packages returns what is known of each package of the inputs, for the
// inventory of an image. What was read out of a package once is remembered in
// the cache.
func (f *Fetcher) Packages(ctx context.Context, in *Inputs) ([]sbom.Package, error) {
	all := make([]sbom.Package, 0, len(in.Lock.Debian.Packages))
	copyright := map[string]string{} // package: the one whose copyright file is its own
	for i := range in.Lock.Debian.Packages {
		p := &in.Lock.Debian.Packages[i]
		facts, err := f.facts(ctx, in, p)
		if err != nil {
			return nil, fmt.Errorf("package %s %s: %w", p.Name, p.Version, err)
		}
		sum, err := parseSum(p.SHA256)
		if err != nil {
			return nil, fmt.Errorf("package %s %s: %w", p.Name, p.Version, err)
		}
		n := sbom.Package{
			Name: p.Name, Version: p.Version, Arch: p.Arch, SHA256: sum,
			Suite: in.Lock.Debian.Suite, Source: facts.Source, SourceVersion: facts.SourceVersion, Homepage: facts.Homepage,
			Licenses: facts.Licenses, Files: facts.Files,
		}
		if len(p.URLs) > 0 {
			n.URL = p.URLs[0]
		}
		if facts.CopyrightOf != "" {
			copyright[p.Name] = facts.CopyrightOf
		}
		all = append(all, n)
	}
	for i := range all {
		of := copyright[all[i].Name]
		for j := range all {
			if of != "" && all[j].Name == of && len(all[i].Licenses) == 0 {
				all[i].Licenses = all[j].Licenses
			}
		}
	}
	return all, nil
}

func (f *Fetcher) facts(ctx context.Context, in *Inputs, p *profiles.LockedPackage) (*packageFacts, error) {
	file, err := f.Cache.recall(ctx, memoFacts, p.SHA256)
	if err == nil {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		facts := &packageFacts{}
		if err := json.Unmarshal(b, facts); err != nil {
			return nil, fmt.Errorf("facts in the cache: %w", err)
		}
		return facts, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f.report(Event{Item: "read package " + p.Name})
	facts, err := f.readFacts(in, p)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(facts)
	if err != nil {
		return nil, err
	}
	sum, _, err := f.Cache.Put(ctx, bytes.NewReader(b), manifest.SHA256{}, maxFacts)
	if err != nil {
		return nil, err
	}
	return facts, f.Cache.remember(memoFacts, p.SHA256, sum)
}

// readFacts reads a package: its control file out of the .deb, which starts
// with it, and everything else out of the data archive.
func (f *Fetcher) readFacts(in *Inputs, p *profiles.LockedPackage) (*packageFacts, error) {
	sum, err := parseSum(p.SHA256)
	if err != nil {
		return nil, err
	}
	facts := &packageFacts{Source: p.Name, SourceVersion: p.Version, Files: map[manifest.SHA256][]string{}}
	control, err := readControl(f.Cache.path(sum))
	if err != nil {
		return nil, err
	}
	facts.control(control)
	doc := "usr/share/doc/" + p.Name
	err = in.ReadPackage(p.Name, func(e DebEntry, r io.Reader) error {
		switch {
		case e.Name == doc && e.Mode&fs.ModeSymlink != 0:
			facts.CopyrightOf = path.Base(e.Link)
		case e.Hard != "" || !e.Mode.IsRegular():
		case e.Name == doc+"/copyright" && e.Size <= sbom.MaxCopyright:
			b, err := io.ReadAll(r)
			if err != nil {
				return err
			}
			facts.Licenses = sbom.ParseCopyright(p.Name, b)
			facts.add(e.Name, sha256.Sum256(b))
		default:
			h := sha256.New()
			if _, err := io.Copy(h, r); err != nil {
				return err
			}
			facts.add(e.Name, manifest.SHA256(h.Sum(nil)))
		}
		return nil
	})
	return facts, err
}

func (f *packageFacts) add(name string, d manifest.SHA256) { f.Files[d] = append(f.Files[d], name) }

// control takes what is wanted out of a control file (deb-control(5)). The
// Source field is left out if it would say what Package and Version do.
func (f *packageFacts) control(fields map[string]string) {
	f.Homepage = fields["homepage"]
	source := fields["source"]
	if source == "" {
		return
	}
	name, rest, ok := strings.Cut(source, " ")
	f.Source = name
	if ok {
		f.SourceVersion = strings.Trim(strings.TrimSpace(rest), "()")
	}
}

// readControl returns the fields of a package's control file, names in lower
// case, without what continues on further lines.
func readControl(deb string) (_ map[string]string, err error) {
	src, err := os.Open(deb)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	return parseControlArchive(bufio.NewReaderSize(src, 64<<10))
}

func parseControlArchive(br *bufio.Reader) (map[string]string, error) {
	var magic [8]byte
	if _, err := io.ReadFull(br, magic[:]); err != nil || string(magic[:]) != "!<arch>\n" {
		return nil, errors.New("not a Debian package: no ar archive")
	}
	for range 8 {
		name, size, err := arHeader(br)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		body := &io.LimitedReader{R: br, N: size}
		if suffix, ok := strings.CutPrefix(name, "control.tar"); ok {
			var fields map[string]string
			err := readData("data.tar"+suffix, body, func(t io.Reader) error {
				return readTar(t, func(e DebEntry, r io.Reader) (err error) {
					if e.Name == "control" && e.Mode.IsRegular() {
						fields, err = parseControl(io.LimitReader(r, maxControl))
					}
					return err
				})
			})
			if err == nil && fields == nil {
				err = errors.New("no control file in it")
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			return fields, nil
		}
		if _, err := io.Copy(io.Discard, io.MultiReader(body, io.LimitReader(br, size%2))); err != nil {
			return nil, fmt.Errorf("member %s: %w", name, err)
		}
	}
	return nil, errors.New("no control archive in the package")
}

func parseControl(r io.Reader) (map[string]string, error) {
	fields := map[string]string{}
	s := bufio.NewScanner(r)
	s.Buffer(nil, maxControl)
	for s.Scan() {
		line := s.Text()
		if line == "" && len(fields) > 0 {
			break
		}
		if line == "" || line[0] == ' ' || line[0] == '\t' || line[0] == '#' {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			return nil, fmt.Errorf("control file: line %.80q is no field", line)
		}
		fields[strings.ToLower(name)] = strings.TrimSpace(value)
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("control file: %w", err)
	}
	return fields, nil
}
