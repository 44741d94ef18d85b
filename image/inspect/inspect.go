// Package inspect reads a built image back and holds it against its manifest.
// It is the builder's counterpart and shares none of its memory: Verify
// re-derives from the bytes of a disk and of the files beside it everything
// that the manifest says, and Compare tells two images apart.
//
// Each format has a reader that is stricter than those of firmware and kernel:
// ReadTable (GPT), ReadFAT (the EFI system partition), package image/pe (the
// UKI), ReadSuperblock (dm-verity), ReadRoot (EROFS), ReadInitrd (cpio),
// OpenDisk (zstd, and package image/qcow2) and package image/iso9660. What others overlook or mend is an error here, because it
// may hide something. Readers are bounded: neither time nor memory depends on
// what hostile bytes claim, and a disk is never loaded as a whole.
package inspect

import (
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/sealift/sealift/image/manifest"
)

// Check is the result of one check. A check that could not be made has failed.
type Check struct {
	// Name says what was checked, in words that stay the same: "disk.gpt".
	Name string `json:"check"`
	OK   bool   `json:"ok"`
	// Detail says, for people, what was found, or what is wrong.
	Detail string `json:"detail"`
	// Got and Want are the two values of a mismatch, where there are two.
	Got  string `json:"got,omitempty"`
	Want string `json:"want,omitempty"`
}

// Mismatch is the error for two values that should be one.
type Mismatch struct {
	What      string
	Got, Want string
}

func (m *Mismatch) Error() string { return fmt.Sprintf("%s is %s, want %s", m.What, m.Got, m.Want) }

// same returns a Mismatch unless the two are equal. A value that is the zero
// value of its type never matches: nothing was stated.
func same[T comparable](what string, got, want T) error {
	var unset T
	if got == want && want != unset {
		return nil
	}
	return &Mismatch{What: what, Got: show(got), Want: show(want)}
}

func show(v any) string {
	switch v := v.(type) {
	case string:
		return fmt.Sprintf("%.300q", v)
	case manifest.SHA256:
		if v.IsZero() {
			return "unset"
		}
	}
	return fmt.Sprint(v)
}

// Keys are the public halves that an image is verified with. A check whose key
// is missing fails.
type Keys struct {
	Image   []byte            // PEM: signs manifests
	DB      *x509.Certificate // signs UKIs
	PK, KEK *x509.Certificate // with DB, the Secure Boot keys that the installer enrols
	PCR     *rsa.PublicKey    // signs PCR policies
}

// Input is an image to verify.
type Input struct {
	Disk Disk
	// DiskName is the artifact that Disk was opened from by OpenArtifact, as one
	// of its kind, so that its content is not compared again. Optional: a device
	// has none.
	DiskName string
	// Manifest and Bundle are the bytes of the manifest and of its signature.
	Manifest, Bundle []byte
	// Dir is the directory with the manifest's other artifacts.
	Dir  string
	Keys Keys
	// DiskOnly leaves out every file but the disk.
	DiskOnly bool
	// Installed says that the disk is that of a machine: the installer gave it
	// a GUID of its own and moved the backup table to its end, and the first
	// boot may have added the state partition. That partition is not looked into.
	Installed bool
	// Workers is how many goroutines hash. Optional; the number of processors
	// if zero.
	Workers int
}

// fatTime returns time and date as a FAT directory entry has them.
func fatTime(t time.Time) (b [4]byte) {
	t = t.UTC()
	hms := uint16(t.Hour()<<11 | t.Minute()<<5 | t.Second()/2)
	ymd := uint16((t.Year()-1980)<<9 | int(t.Month())<<5 | t.Day())
	return [4]byte{byte(hms), byte(hms >> 8), byte(ymd), byte(ymd >> 8)}
}
