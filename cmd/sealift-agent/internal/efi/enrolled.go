package efi

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
)

// Foreign returns the names of those of PK, KEK and db in which the firmware
// holds something else than the signature list of the payload in k. It is for
// a firmware in user mode, whose keys cannot be replaced without the holder of
// its PK.
func (v Vars) Foreign(k Keys) ([]string, error) {
	var foreign []string
	for _, w := range []struct {
		name, vendor string
		payload      []byte
	}{{"PK", global, k.PK}, {"KEK", global, k.KEK}, {"db", security, k.DB}} {
		list, err := signatureList(w.payload)
		if err != nil {
			return nil, fmt.Errorf("compare Secure Boot keys: payload of %s: %w", w.name, err)
		}
		have, err := v.read(w.name, w.vendor)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("compare Secure Boot keys: %w", err)
		}
		if !bytes.Equal(have, list) {
			foreign = append(foreign, w.name)
		}
	}
	return foreign, nil
}
