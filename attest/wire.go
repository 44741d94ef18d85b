package attest

import (
	"encoding/binary"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// The structures that a TPM sends are read here, not by go-tpm: it reads by
// reflection, which takes a hundred times as long, takes missing size fields
// for empty ones, and leaves trailing bytes. What is accepted here encodes to
// the bytes that were read and nothing else; FuzzDecodePublic holds that
// against go-tpm. Section numbers are of the TPM 2.0 Library Part 2.

// maxStructure bounds a TPM structure, in bytes: an RSA-4096 signature, the
// largest, has about 520.
const maxStructure = 1024

// wireReader reads big-endian values. It goes on after the first error, with
// zeros; end tells of it.
type wireReader struct {
	b   []byte
	err error
}

func (r *wireReader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
	r.b = nil
}

func (r *wireReader) take(n int) []byte {
	if n > len(r.b) {
		r.fail("it ends inside a field")
		return make([]byte, min(n, 8))
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *wireReader) u8() byte    { return r.take(1)[0] }
func (r *wireReader) u16() uint16 { return binary.BigEndian.Uint16(r.take(2)) }
func (r *wireReader) u32() uint32 { return binary.BigEndian.Uint32(r.take(4)) }
func (r *wireReader) u64() uint64 { return binary.BigEndian.Uint64(r.take(8)) }

// sized reads the contents of a TPM2B, in memory of its own.
func (r *wireReader) sized() []byte {
	n := int(r.u16())
	if n > len(r.b) {
		r.fail("it ends inside a field")
		return nil
	}
	return append([]byte(nil), r.take(n)...)
}

func (r *wireReader) alg() tpm2.TPMAlgID { return tpm2.TPMAlgID(r.u16()) }

// read decodes a whole structure.
func read[T any](what string, b []byte, decode func(*wireReader) *T) (*T, error) {
	if len(b) == 0 || len(b) > maxStructure {
		return nil, fmt.Errorf("%s: got %d bytes, want 1 to %d", what, len(b), maxStructure)
	}
	r := &wireReader{b: b}
	v := decode(r)
	if r.err == nil && len(r.b) > 0 {
		r.fail("%d bytes follow it", len(r.b))
	}
	if r.err != nil {
		return nil, fmt.Errorf("%s: decode: %w", what, r.err)
	}
	return v, nil
}

// decodePublic decodes a TPMT_PUBLIC (12.2.4) of an RSA or ECC key.
func decodePublic(what string, b []byte) (*tpm2.TPMTPublic, error) {
	return read(what, b, func(r *wireReader) *tpm2.TPMTPublic {
		p := &tpm2.TPMTPublic{Type: r.alg(), NameAlg: r.alg(), ObjectAttributes: r.attributes()}
		p.AuthPolicy.Buffer = r.sized()
		switch p.Type {
		case tpm2.TPMAlgRSA:
			parms := &tpm2.TPMSRSAParms{Symmetric: r.symmetric()}
			parms.Scheme.Scheme, parms.Scheme.Details = r.scheme()
			parms.KeyBits, parms.Exponent = tpm2.TPMKeyBits(r.u16()), r.u32()
			p.Parameters = tpm2.NewTPMUPublicParms(p.Type, parms)
			p.Unique = tpm2.NewTPMUPublicID(p.Type, &tpm2.TPM2BPublicKeyRSA{Buffer: r.sized()})
		case tpm2.TPMAlgECC:
			parms := &tpm2.TPMSECCParms{Symmetric: r.symmetric()}
			parms.Scheme.Scheme, parms.Scheme.Details = r.scheme()
			parms.CurveID = tpm2.TPMECCCurve(r.u16())
			if parms.KDF.Scheme = r.alg(); parms.KDF.Scheme != tpm2.TPMAlgNull {
				r.fail("key derivation is %#04x, want none", uint16(parms.KDF.Scheme))
			}
			p.Parameters = tpm2.NewTPMUPublicParms(p.Type, parms)
			p.Unique = tpm2.NewTPMUPublicID(p.Type, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: r.sized()}, Y: tpm2.TPM2BECCParameter{Buffer: r.sized()}})
		default:
			r.fail("key type is %#04x, want RSA or ECC", uint16(p.Type))
		}
		return p
	})
}

// attributes reads a TPMA_OBJECT (8.3.2).
func (r *wireReader) attributes() tpm2.TPMAObject {
	a := r.u32()
	const known = attrFixedTPM | attrSTClear | attrFixedParent | attrSensitiveDataOrigin | attrUserWithAuth | attrAdminWithPolicy | attrFirmwareLimited |
		attrNoDA | attrEncryptedDuplication | attrRestricted | attrDecrypt | attrSign | attrX509Sign
	if a&^known != 0 {
		r.fail("object attributes are %#08x: reserved bits are set", a)
	}
	return tpm2.TPMAObject{
		FixedTPM: a&attrFixedTPM != 0, STClear: a&attrSTClear != 0, FixedParent: a&attrFixedParent != 0,
		SensitiveDataOrigin: a&attrSensitiveDataOrigin != 0, UserWithAuth: a&attrUserWithAuth != 0, AdminWithPolicy: a&attrAdminWithPolicy != 0,
		FirmwareLimited: a&attrFirmwareLimited != 0, NoDA: a&attrNoDA != 0, EncryptedDuplication: a&attrEncryptedDuplication != 0,
		Restricted: a&attrRestricted != 0, Decrypt: a&attrDecrypt != 0, SignEncrypt: a&attrSign != 0, X509Sign: a&attrX509Sign != 0,
	}
}

// symmetric reads a TPMT_SYM_DEF_OBJECT (11.1.7): AES or none.
func (r *wireReader) symmetric() tpm2.TPMTSymDefObject {
	s := tpm2.TPMTSymDefObject{Algorithm: r.alg()}
	switch s.Algorithm {
	case tpm2.TPMAlgNull:
	case tpm2.TPMAlgAES:
		s.KeyBits = tpm2.NewTPMUSymKeyBits(s.Algorithm, tpm2.TPMKeyBits(r.u16()))
		s.Mode = tpm2.NewTPMUSymMode(s.Algorithm, r.alg())
	default:
		r.fail("cipher is %#04x, want AES or none", uint16(s.Algorithm))
	}
	return s
}

// scheme reads a TPMT_ECC_SCHEME or TPMT_RSA_SCHEME (11.2.4.2, 11.2.5.6):
// ECDSA or none, as no key that is accepted has another.
func (r *wireReader) scheme() (tpm2.TPMAlgID, tpm2.TPMUAsymScheme) {
	var details tpm2.TPMUAsymScheme
	s := r.alg()
	switch s {
	case tpm2.TPMAlgNull:
	case tpm2.TPMAlgECDSA:
		details = tpm2.NewTPMUAsymScheme(s, &tpm2.TPMSSigSchemeECDSA{HashAlg: r.alg()})
	default:
		r.fail("scheme is %#04x, want ECDSA or none", uint16(s))
	}
	return s, details
}

// yesNo reads a TPMI_YES_NO (9.2).
func (r *wireReader) yesNo(what string) tpm2.TPMIYesNo {
	v := r.u8()
	if v > 1 {
		r.fail("%s is %d, want 0 or 1", what, v)
	}
	return v == 1
}

// clockInfo reads a TPMS_CLOCK_INFO (10.11.1).
func (r *wireReader) clockInfo() tpm2.TPMSClockInfo {
	c := tpm2.TPMSClockInfo{Clock: r.u64(), ResetCount: r.u32(), RestartCount: r.u32()}
	c.Safe = r.yesNo("the clock's safe")
	return c
}

// decodeTimeInfo decodes a TPMS_TIME_INFO (10.11.6).
func decodeTimeInfo(what string, b []byte) (*tpm2.TPMSTimeInfo, error) {
	return read(what, b, func(r *wireReader) *tpm2.TPMSTimeInfo {
		t := &tpm2.TPMSTimeInfo{Time: r.u64()}
		t.ClockInfo = r.clockInfo()
		return t
	})
}

// decodeAttest decodes a TPMS_ATTEST (10.12.12) of a quote, a creation or an audit
// session.
func decodeAttest(what string, b []byte) (*tpm2.TPMSAttest, error) {
	return read(what, b, func(r *wireReader) *tpm2.TPMSAttest {
		a := &tpm2.TPMSAttest{Magic: tpm2.TPMGenerated(r.u32()), Type: tpm2.TPMST(r.u16())}
		a.QualifiedSigner.Buffer, a.ExtraData.Buffer = r.sized(), r.sized()
		a.ClockInfo = r.clockInfo()
		a.FirmwareVersion = r.u64()
		switch a.Type {
		case tpm2.TPMSTAttestQuote:
			info := &tpm2.TPMSQuoteInfo{PCRSelect: r.selection()}
			info.PCRDigest.Buffer = r.sized()
			a.Attested = tpm2.NewTPMUAttest(a.Type, info)
		case tpm2.TPMSTAttestCreation:
			info := &tpm2.TPMSCreationInfo{}
			info.ObjectName.Buffer, info.CreationHash.Buffer = r.sized(), r.sized()
			a.Attested = tpm2.NewTPMUAttest(a.Type, info)
		case tpm2.TPMSTAttestSessionAudit:
			exclusive := r.yesNo("exclusiveSession")
			info := &tpm2.TPMSSessionAuditInfo{ExclusiveSession: exclusive}
			info.SessionDigest.Buffer = r.sized()
			a.Attested = tpm2.NewTPMUAttest(a.Type, info)
		default:
			r.fail("attestation type is %#04x, want a quote, a creation or an audit session", uint16(a.Type))
		}
		return a
	})
}

// decodeSelection decodes a TPML_PCR_SELECTION (10.9.7).
func decodeSelection(what string, b []byte) (*tpm2.TPMLPCRSelection, error) {
	return read(what, b, func(r *wireReader) *tpm2.TPMLPCRSelection {
		l := r.selection()
		return &l
	})
}

// selection reads a TPML_PCR_SELECTION.
func (r *wireReader) selection() tpm2.TPMLPCRSelection {
	n := r.u32()
	if n > 16 {
		r.fail("%d PCR selections, at most 16 allowed", n)
		return tpm2.TPMLPCRSelection{}
	}
	var l tpm2.TPMLPCRSelection
	for range n {
		s := tpm2.TPMSPCRSelection{Hash: r.alg()}
		s.PCRSelect = append([]byte(nil), r.take(int(r.u8()))...)
		l.PCRSelections = append(l.PCRSelections, s)
	}
	return l
}

// decodeSignature decodes a TPMT_SIGNATURE (11.3.4): ECDSA or one of RSA.
func decodeSignature(what string, b []byte) (*tpm2.TPMTSignature, error) {
	return read(what, b, func(r *wireReader) *tpm2.TPMTSignature {
		s := &tpm2.TPMTSignature{SigAlg: r.alg()}
		switch s.SigAlg {
		case tpm2.TPMAlgECDSA:
			e := &tpm2.TPMSSignatureECC{Hash: r.alg()}
			e.SignatureR.Buffer, e.SignatureS.Buffer = r.sized(), r.sized()
			s.Signature = tpm2.NewTPMUSignature(s.SigAlg, e)
		case tpm2.TPMAlgRSASSA, tpm2.TPMAlgRSAPSS:
			e := &tpm2.TPMSSignatureRSA{Hash: r.alg()}
			e.Sig.Buffer = r.sized()
			s.Signature = tpm2.NewTPMUSignature(s.SigAlg, e)
		default:
			r.fail("signature scheme is %#04x, want ECDSA", uint16(s.SigAlg))
		}
		return s
	})
}

// decodeCreation decodes a TPMS_CREATION_DATA (15.1).
func decodeCreation(what string, b []byte) (*tpm2.TPMSCreationData, error) {
	return read(what, b, func(r *wireReader) *tpm2.TPMSCreationData {
		c := &tpm2.TPMSCreationData{PCRSelect: r.selection()}
		c.PCRDigest.Buffer = r.sized()
		l := r.u8()
		c.Locality = tpm2.TPMALocality{
			TPMLocZero: l&1 != 0, TPMLocOne: l&2 != 0, TPMLocTwo: l&4 != 0, TPMLocThree: l&8 != 0, TPMLocFour: l&16 != 0, Extended: l >> 5,
		}
		c.ParentNameAlg = r.alg()
		c.ParentName.Buffer, c.ParentQualifiedName.Buffer, c.OutsideInfo.Buffer = r.sized(), r.sized(), r.sized()
		return c
	})
}
