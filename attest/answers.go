package attest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// explainNonce says which it is when a statement's extraData is not ours. That one
// digest over everything does not tell. What the same TPM signed of the transport key
// does: its certification has the challenge alone, and the data of its creation the
// connection (ConnectionData). What does not show stays CodeQuoteNonce: agents older
// than that say nothing of the connection, and whoever keeps the transport key back
// says nothing at all.
func (v *verification) explainNonce(e *checkError, key *ecdsa.PublicKey, akName []byte) {
	if e.code != CodeQuoteNonce || e.attest == nil {
		return
	}
	const what = "transport key certification"
	t := &v.ev.Transport
	a, err := checkStatement(what, t.Certify, t.Signature, tpm2.TPMSTAttestCreation, key, akName)
	if err != nil {
		return
	}
	info, infoErr := a.Attested.Creation()
	digest := sha256.Sum256(t.CreationData)
	if infoErr != nil || !bytes.Equal(info.ObjectName.Buffer, transportName(t)) || !bytes.Equal(info.CreationHash.Buffer, digest[:]) {
		return
	}
	creation, creationErr := decodeCreation("creation data", t.CreationData)
	if creationErr != nil {
		return
	}
	made, signed := timeOf(a), timeOf(e.attest)
	older := signed.resetCount < made.resetCount || signed.resetCount == made.resetCount &&
		(signed.restartCount < made.restartCount || signed.restartCount == made.restartCount && signed.clock < made.clock)
	is := func(code Code, format string, args ...any) {
		e.code = code
		e.message = fmt.Sprintf("%s: it %s; extraData is %s, want %s", e.what, fmt.Sprintf(format, args...), e.got, e.want)
	}
	switch {
	case !bytes.Equal(a.ExtraData.Buffer, CertifyData(v.ch.Nonce)):
		is(CodeQuoteChallenge, "answers another challenge: the transport key that came with it was made for another, too")
	case older:
		is(CodeQuoteChallenge, "answers another challenge: it is older (reset %d, restart %d, clock %d ms) than the transport key that the TPM made for this one (reset %d, restart %d, clock %d ms)",
			signed.resetCount, signed.restartCount, signed.clock, made.resetCount, made.restartCount, made.clock)
	case len(creation.OutsideInfo.Buffer) == 0:
	case !bytes.Equal(creation.OutsideInfo.Buffer, ConnectionData(v.ses.Exporter)):
		is(CodeQuoteConnection, "answers over another connection: the TPM made the transport key for this challenge, which came to it over that")
	default:
		is(CodeQuoteEvidence, "is not of this set of evidence, though the TPM made the transport key for this challenge and this connection")
	}
}
