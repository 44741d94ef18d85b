package verity

import (
	"crypto/sha256"
	"fmt"

	"github.com/sealift/sealift/image/manifest"
)

// SaltFor returns the salt of an image's hash tree. It keeps an attacker who
// prepares collisions from having one table for all images; it need not be
// random. As it is derived from the digest of the lock, name and version, a
// verifier can tell whether a tree was made for what its manifest says.
func SaltFor(lock manifest.SHA256, name, version string) [32]byte {
	h := sha256.New()
	fmt.Fprintf(h, "sealift verity salt v1\x00%s\x00%s\x00%s", lock, name, version)
	return [32]byte(h.Sum(nil))
}
