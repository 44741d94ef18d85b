package oci

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Bounds of an archive that CheckArchive accepts.
const (
	maxArchiveEntries = 10_000
	maxJSON           = 4 << 20 // bytes of index.json
)

// CheckArchive reads an archive that someone else made and reports whether a
// node can import it under the name. It holds that
//   - it is a tar archive of an OCI image layout, with files and directories only,
//   - every blob has the digest that is its name,
//   - the index has an entry with that name as its annotation, and its manifest
//     is among the blobs.
func CheckArchive(r io.Reader, name string) error {
	t := tar.NewReader(r)
	blobs := map[string]bool{}
	var index []byte
	layout := false
	for n := 0; ; n++ {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("archive of image %s: %w", name, err)
		}
		if n >= maxArchiveEntries {
			return fmt.Errorf("archive of image %s: more than %d entries", name, maxArchiveEntries)
		}
		file := strings.TrimPrefix(h.Name, "./")
		switch {
		case h.Typeflag == tar.TypeDir:
		case h.Typeflag != tar.TypeReg:
			return fmt.Errorf("archive of image %s: entry %.100q is neither file nor directory", name, h.Name)
		case file == "oci-layout":
			layout = true
		case file == "index.json":
			if index, err = io.ReadAll(io.LimitReader(t, maxJSON)); err != nil {
				return fmt.Errorf("archive of image %s: %w", name, err)
			}
		case strings.HasPrefix(file, "blobs/sha256/"):
			d := sha256.New()
			if _, err := io.Copy(d, t); err != nil {
				return fmt.Errorf("archive of image %s: %w", name, err)
			}
			got, want := hex.EncodeToString(d.Sum(nil)), strings.TrimPrefix(file, "blobs/sha256/")
			if got != want {
				return fmt.Errorf("archive of image %s: blob %.64s has digest %s", name, want, got)
			}
			blobs[got] = true
		}
	}
	if !layout || index == nil {
		return fmt.Errorf("archive of image %s: not an OCI image layout: oci-layout or index.json is missing", name)
	}
	return checkIndex(index, name, blobs)
}

func checkIndex(raw []byte, name string, blobs map[string]bool) error {
	var index v1.IndexManifest
	if err := json.Unmarshal(raw, &index); err != nil {
		return fmt.Errorf("archive of image %s: index.json: %w", name, err)
	}
	var found []string
	for _, m := range index.Manifests {
		got := m.Annotations[AnnotationName]
		if got == name {
			if m.Digest.Algorithm != "sha256" || !blobs[m.Digest.Hex] {
				return fmt.Errorf("archive of image %s: manifest %s is not in the archive", name, m.Digest)
			}
			return nil
		}
		found = append(found, fmt.Sprintf("%.100q", got))
	}
	return fmt.Errorf("archive of image %s: no entry has it as annotation %s; there are: %s", name, AnnotationName, strings.Join(found, ", "))
}
