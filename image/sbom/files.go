package sbom

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"strings"

	"github.com/sealift/sealift/image/manifest"
)

// MaxSize bounds a document, in bytes. A larger one is refused unread.
const MaxSize = 64 << 20

// maxDepth bounds how deep components of a CycloneDX document may be nested.
const maxDepth = 8

// Document is what a verifier reads back of a document.
type Document struct {
	Format       string // "SPDX-2.3" or "CycloneDX-1.6"
	Name         string // of the image
	Version      string
	Digest       manifest.SHA256            // of the raw disk image
	Files        map[string]manifest.SHA256 // by path as in File.Path: root/usr/bin/runc
	PackageURLs  []string                   // of all components, in the order of the document
	PackageNames []string                   // the same components: name and version
}

// Read reads a document of either format. It does not verify a signature: call
// it only on bytes that image/sign/bundle has verified, or to look.
func Read(b []byte) (*Document, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("read SBOM: %d bytes, at most %d allowed", len(b), MaxSize)
	}
	var head struct {
		SPDX      string `json:"spdxVersion"`
		CycloneDX string `json:"bomFormat"`
		Version   any    `json:"specVersion"`
	}
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(&head); err != nil {
		return nil, fmt.Errorf("read SBOM: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("read SBOM: data after the document")
	}
	doc := &Document{Files: map[string]manifest.SHA256{}}
	var err error
	switch {
	case head.SPDX == "SPDX-2.3":
		doc.Format = head.SPDX
		err = doc.spdx(b)
	case head.CycloneDX == "CycloneDX" && head.Version == "1.6":
		doc.Format = "CycloneDX-1.6"
		err = doc.cycloneDX(b)
	default:
		return nil, fmt.Errorf("read SBOM: it is neither SPDX 2.3 nor CycloneDX 1.6 (spdxVersion %.40q, bomFormat %.40q)", head.SPDX, head.CycloneDX)
	}
	if err != nil {
		return nil, fmt.Errorf("read SBOM: %w", err)
	}
	if doc.Digest.IsZero() {
		return nil, errors.New("read SBOM: it does not say which disk image it is of")
	}
	return doc, nil
}

func (d *Document) addFile(name, digest string) error {
	var sum manifest.SHA256
	if err := sum.UnmarshalText([]byte(digest)); err != nil || sum.IsZero() {
		return fmt.Errorf("file %.200q has no SHA-256 digest", name)
	}
	if _, twice := d.Files[name]; twice || name != path.Clean(name) || !filepath.IsLocal(name) {
		return fmt.Errorf("file %.200q is there twice, or its name is not clean", name)
	}
	d.Files[name] = sum
	return nil
}

type spdxChecksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

func spdxSHA256(all []spdxChecksum) string {
	for _, c := range all {
		if c.Algorithm == "SHA256" {
			return c.Value
		}
	}
	return ""
}

func (d *Document) spdx(b []byte) error {
	var doc struct {
		Packages []struct {
			ID        string         `json:"SPDXID"`
			Name      string         `json:"name"`
			Version   string         `json:"versionInfo"`
			Checksums []spdxChecksum `json:"checksums"`
			Refs      []struct {
				Type    string `json:"referenceType"`
				Locator string `json:"referenceLocator"`
			} `json:"externalRefs"`
		} `json:"packages"`
		Files []struct {
			Name      string         `json:"fileName"`
			Checksums []spdxChecksum `json:"checksums"`
		} `json:"files"`
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		return err
	}
	for _, p := range doc.Packages {
		if p.ID == "SPDXRef-"+imageID {
			d.Name, d.Version = p.Name, p.Version
			if err := d.Digest.UnmarshalText([]byte(spdxSHA256(p.Checksums))); err != nil {
				return fmt.Errorf("digest of the image: %w", err)
			}
			continue
		}
		d.PackageNames = append(d.PackageNames, strings.TrimSpace(p.Name+" "+p.Version))
		url := ""
		for _, r := range p.Refs {
			if r.Type == "purl" {
				url = r.Locator
			}
		}
		d.PackageURLs = append(d.PackageURLs, url)
	}
	for _, f := range doc.Files {
		if err := d.addFile(strings.TrimPrefix(f.Name, "./"), spdxSHA256(f.Checksums)); err != nil {
			return err
		}
	}
	return nil
}

type cdxRead struct {
	Type    string `json:"type"`
	Name    string `json:"name"`
	Version string `json:"version"`
	PURL    string `json:"purl"`
	Hashes  []struct {
		Algorithm string `json:"alg"`
		Value     string `json:"content"`
	} `json:"hashes"`
	Components []cdxRead `json:"components"`
}

func (c *cdxRead) sha256() string {
	for _, h := range c.Hashes {
		if h.Algorithm == "SHA-256" {
			return h.Value
		}
	}
	return ""
}

func (d *Document) cycloneDX(b []byte) error {
	var doc struct {
		Metadata struct {
			Component cdxRead `json:"component"`
		} `json:"metadata"`
		Components []cdxRead `json:"components"`
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		return err
	}
	image := &doc.Metadata.Component
	d.Name, d.Version = image.Name, image.Version
	if err := d.Digest.UnmarshalText([]byte(image.sha256())); err != nil {
		return fmt.Errorf("digest of the image: %w", err)
	}
	return d.components(doc.Components, 0)
}

func (d *Document) components(all []cdxRead, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("components are nested more than %d deep", maxDepth)
	}
	for i := range all {
		c := &all[i]
		if c.Type == "file" {
			if err := d.addFile(c.Name, c.sha256()); err != nil {
				return err
			}
		} else {
			d.PackageNames = append(d.PackageNames, strings.TrimSpace(c.Name+" "+c.Version))
			d.PackageURLs = append(d.PackageURLs, c.PURL)
		}
		if err := d.components(c.Components, depth+1); err != nil {
			return err
		}
	}
	return nil
}
