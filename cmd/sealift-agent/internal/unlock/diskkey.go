// Package unlock turns a verified boot into an open disk: Loop asks the
// attestation service until it releases, DiskKey joins the service's half of
// the disk key with the half that this TPM holds, and State finds, opens
// or, once, creates the encrypted state partition. Nothing is written to a
// disk before the service has released its half.
package unlock

import (
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"

	"github.com/sealift/sealift/attest"
)

// halfSize is the length of each half of a disk key, and of the key, in bytes.
const halfSize = 32

// DiskKey derives the key of the state partition. Neither the machine nor the
// service can know it alone, and the halves of one disk are of no use for
// another: HKDF-SHA256 (RFC 5869) over device half and service half, without
// salt, with the disk's GUID (lower case) in the info.
func DiskKey(device, service attest.Secret, diskGUID string) (attest.Secret, error) {
	if len(device) != halfSize || len(service) != halfSize {
		return nil, fmt.Errorf("derive the disk key: the halves have %d and %d bytes, want %d each", len(device), len(service), halfSize)
	}
	if len(diskGUID) != 36 {
		return nil, fmt.Errorf("derive the disk key: the disk GUID %q has %d characters, want 36", diskGUID, len(diskGUID))
	}
	ikm := make([]byte, 0, 2*halfSize)
	ikm = append(ikm, device...)
	ikm = append(ikm, service...)
	defer clear(ikm)
	key, err := hkdf.Key(sha256.New, ikm, nil, "sealift luks2 v1 "+diskGUID, halfSize)
	if err != nil {
		return nil, fmt.Errorf("derive the disk key: %w", err)
	}
	return key, nil
}
