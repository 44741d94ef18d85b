package tpm

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
)

// misfit says what speaks against the key of a kind being the certificate's, without
// making it, or is nil. A chip takes up to tens of seconds to make an RSA key, in each
// boot, and milliseconds to read the public area of the one that many keep persistent.
//
// The owner of the TPM, which may be an earlier system, can put there what it likes. So
// it counts only if it is a primary key of the endorsement hierarchy, made from the
// kind's template with no nonce or template of the vendor's. What it was made unique
// with cannot be seen: some software made such keys with an empty field in place of
// zeros. That is why nothing but a choice rests on this, and why IdentifyByKeys goes
// without it.
func (t *TPM) misfit(kind ekKind, cert []byte, indices []uint32) error {
	if kind.persistent == 0 || slices.Contains(indices, kind.template) || kind.nonce != 0 && slices.Contains(indices, kind.nonce) {
		return nil
	}
	rsp, err := tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(kind.persistent)}.Execute(t.transport)
	if err != nil {
		return nil // most often there is none
	}
	public, err := parsePublic(rsp.OutPublic.Bytes())
	if err != nil || !madeFrom(public, kind.public) || !isPrimary(public, rsp.QualifiedName.Buffer) {
		return nil
	}
	if certifies(cert, rsp.OutPublic.Bytes()) {
		return nil
	}
	return fmt.Errorf("nv index %#x: the certificate is not of the %s key that is at %#x", kind.certificate, kind.name, kind.persistent)
}

// madeFrom reports whether a key is like its template, in all but what is unique of it.
func madeFrom(public *tpm2.TPMTPublic, template tpm2.TPMTPublic) bool {
	if public.Type != template.Type {
		return false
	}
	like := *public
	like.Unique = template.Unique
	return bytes.Equal(tpm2.Marshal(like), tpm2.Marshal(template))
}

// isPrimary reports whether a Qualified Name is that of a primary key of the
// endorsement hierarchy (Part 1, 16, Names).
func isPrimary(public *tpm2.TPMTPublic, qualified []byte) bool {
	name, err := tpm2.ObjectName(public)
	if err != nil {
		return false
	}
	hash, err := public.NameAlg.Hash()
	if err != nil {
		return false
	}
	h := hash.New()
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMRHEndorsement)))
	h.Write(name.Buffer)
	return bytes.Equal(qualified, h.Sum(binary.BigEndian.AppendUint16(nil, uint16(public.NameAlg))))
}
