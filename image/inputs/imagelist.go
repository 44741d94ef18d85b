package inputs

import (
	"fmt"
	"strings"

	"github.com/sealift/sealift/profiles"
)

// Bounds of a distro's list of images. RKE2's has some 20.
const (
	maxImageList = 1 << 20 // bytes
	maxImages    = 1000
)

// parseImageList reads a distro's own list of images: a reference a line, with
// empty lines and lines that start with # between them. References come back in
// full, in the order of the list, each once.
func parseImageList(b []byte) ([]string, error) {
	if len(b) > maxImageList {
		return nil, fmt.Errorf("list of images: %d bytes, at most %d allowed", len(b), maxImageList)
	}
	var out []string
	seen := map[string]bool{}
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		ref := strings.TrimSpace(line)
		if ref == "" || strings.HasPrefix(ref, "#") {
			continue
		}
		full := fullReference(ref)
		if err := profiles.CheckImage(full); err != nil {
			return nil, fmt.Errorf("list of images: line %d: %w", n, err)
		}
		if seen[full] {
			continue
		}
		seen[full] = true
		if out = append(out, full); len(out) > maxImages {
			return nil, fmt.Errorf("list of images: more than %d", maxImages)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("list of images: there is none in %d bytes", len(b))
	}
	return out, nil
}

// fullReference adds to a reference what container tools leave out: the
// registry docker.io, and its namespace library.
func fullReference(ref string) string {
	first, rest, ok := strings.Cut(ref, "/")
	switch {
	case !ok:
		return "docker.io/library/" + ref
	case !strings.ContainsAny(first, ".:") && first != "localhost":
		return "docker.io/" + ref
	case (first == "docker.io" || first == "index.docker.io") && !strings.Contains(rest, "/"):
		return "docker.io/library/" + rest
	case first == "index.docker.io":
		return "docker.io/" + rest
	}
	return ref
}
