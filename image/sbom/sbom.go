// Package sbom says what is in an image: Scan reads the file trees that an
// image is made of and gives an Inventory, which SPDX and CycloneDX write as
// SPDX 2.3 and CycloneDX 1.6 JSON. Files reads such a document back.
//
// What is listed was found in the image, not in what the image was asked to
// hold. Every regular file is hashed. A file that is in a Debian package, by its
// digest, comes from that package; a Go program names its modules itself; a
// container image archive is opened and its programs are listed too. What is
// left was made by the builder.
//
// Documents hold neither random numbers nor the time: identifiers come from the
// digest of the disk image, dates from the build's epoch. Equal images give
// equal documents.
package sbom

import (
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/tree"
)

// Input is what an inventory is made from. All fields are required unless
// marked Optional.
type Input struct {
	Name, Version, Arch string          // of the image; Arch in GOARCH spelling
	Digest              manifest.SHA256 // of the raw disk image, which names the document
	Epoch               time.Time       // SOURCE_DATE_EPOCH
	Tool                string          // version of the program that builds. Optional.

	Packages []Package // Debian packages. Optional.
	Base     *Base     // that the root file system started from. Optional.
	Places   []Place   // file trees
	Blobs    []Blob    // parts that are in no tree: kernel, stub. Optional.

	// ImagesDir is the directory of container image archives, absolute. Optional.
	ImagesDir string
	// Workers is how many files are hashed at once. Optional; 1 if zero.
	Workers int
	// TempDir is where the programs of archives are unpacked, one at a time and
	// worker. Optional; os.TempDir if empty.
	TempDir string
}

// Place is a file tree of the image, under the name that stands before its
// paths in the inventory: "root", "initramfs", "installer".
type Place struct {
	Name string
	Tree *tree.Tree
}

// Blob is a part of the image that is no file of a tree.
type Blob struct {
	Place, Name string // e.g. "uki" and "linux"
	Data        []byte
}

// Package is what is known about a Debian binary package.
type Package struct {
	Name, Version, Arch   string
	Source, SourceVersion string          // of the source package
	Vendor                string          // distribution, as os-release's ID; debian if empty
	Suite                 string          // code name of the suite, or ID and number: bookworm, ubuntu-24.04. Optional.
	Homepage              string          // Optional.
	SHA256                manifest.SHA256 // of the .deb; unset for those of a base image
	URL                   string          // of the .deb
	// Licenses are those that the package's copyright file lists in the
	// machine-readable format. Empty if it is not in that format.
	Licenses []License
	// Files are the regular files of the package, by digest.
	Files map[manifest.SHA256][]string
}

// Kinds of a Component.
const (
	KindDebian  = "debian"  // binary package of Debian, or of a distribution that is made from it
	KindProgram = "program" // Go program that is in no package
	KindModule  = "module"  // Go module, or the Go standard library
	KindImage   = "image"   // preloaded container image, or the base image
)

// Component is something with a name and a version that files come from.
type Component struct {
	ID      string // unique in the inventory: letters, digits, "." and "-"
	Kind    string
	Name    string
	Version string          // Optional.
	Vendor  string          // of a Debian package: the distribution
	PURL    string          // package URL
	SHA256  manifest.SHA256 // of the package, program or image manifest; unset for modules
	Sum     string          // of a Go module: h1: digest as in go.sum
	URL     string          // where it was downloaded. Optional.
	Home    string          // home page. Optional.

	Source, SourceVersion string // of a Debian package
	Licenses              []License
	DependsOn             []string // IDs, in order: the modules that a program is linked from
	GoVersion             string   // of a program: the toolchain
	Package               string   // of a program: the import path of its main package
}

// File is a regular file of the image.
type File struct {
	Path       string // place, "/", path in it: root/usr/bin/runc
	Size       int64
	Executable bool
	SHA1       [20]byte // SPDX demands it
	SHA256     manifest.SHA256
	From       string // ID of a Component; empty if the builder made the file
}

// Inventory is what is in an image.
type Inventory struct {
	Name, Version, Arch string
	Digest              manifest.SHA256
	Epoch               time.Time
	Tool                string

	Components []Component // by kind and name
	Files      []File      // by path
}

func (in *Input) check() error {
	switch {
	case in.Name == "" || in.Version == "" || in.Arch == "":
		return errors.New("the image has no name, version or architecture")
	case in.Digest.IsZero():
		return errors.New("the image has no digest")
	}
	return nil
}

// Component returns the component with that ID, or false.
func (v *Inventory) Component(id string) (*Component, bool) {
	for i := range v.Components {
		if v.Components[i].ID == id {
			return &v.Components[i], true
		}
	}
	return nil, false
}

// verificationCode is the package verification code over all files (SPDX 2.3,
// 7.9): the SHA-1 over their sorted SHA-1 digests in hex.
func (v *Inventory) verificationCode() string {
	sums := make([]string, len(v.Files))
	for i, f := range v.Files {
		sums[i] = hex.EncodeToString(f.SHA1[:])
	}
	slices.Sort(sums)
	code := sha1.Sum([]byte(strings.Join(sums, "")))
	return hex.EncodeToString(code[:])
}

// uuid names the document: version 8 (RFC 9562, 5.8), of the image's digest.
func (v *Inventory) uuid() string {
	u := v.Digest
	u[6] = u[6]&0x0f | 0x80
	u[8] = u[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16])
}

// identifier makes a string of letters, digits, dots and hyphens out of any
// other, and keeps different strings different with a digest if it had to
// change one.
func identifier(s string) string {
	clean := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-' {
			return r
		}
		return '-'
	}, s)
	if clean == s {
		return s
	}
	sum := sha1.Sum([]byte(s))
	return clean + "-" + hex.EncodeToString(sum[:4])
}
