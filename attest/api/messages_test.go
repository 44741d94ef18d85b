package api

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/sealift/sealift/attest/strict"
	"github.com/sealift/sealift/firmware"
)

// FuzzDecodeMessages decodes whatever is on the wire between node, operator and
// service as each of its messages. What decodes is the same after it was encoded
// and decoded again: nothing of it is lost or read in two ways.
func FuzzDecodeMessages(f *testing.F) {
	for _, s := range []string{
		`{"version":1,"purpose":"unlock","ekPublic":"AA==","ekCertificates":["MAA="],"akPublic":"AA=="}`,
		`{"id":"c","nonce":"AA==","credential":"AA==","secret":"AA==","pcrs":[0,1,2],"expires":"2026-01-02T03:04:05Z"}`,
		`{"id":"c","nonce":"AA==","credential":"AA==","secret":"AA==","pcrs":[0],"expires":"2026-01-02T03:04:05Z","proveBanks":true}`,
		`{"challengeID":"c","activationProof":"AA==","evidence":{"banks":{"time":"AA==","list":"AA==","attest":"AA==","signature":"AA=="}}}`,
		`{"challengeID":"c","activationProof":"AA==","evidence":{"noBanks":"it cannot"}}`,
		`{"challengeID":"c","activationProof":"AA==","evidence":{"quotes":[{"bank":"sha256","attest":"AA==","pcrs":{"0":"AA=="}}],"disk":{"guid":"x"}}}`,
		`{"result":{"machine":"","findings":[{"code":"quote.nonce","pcr":7,"message":"m"}],"facts":[]},"release":{"payloadType":"t","payload":"AA==","signatures":[{"keyid":"k","sig":"AA=="}]}}`,
		`{"id":"c","nonce":"AA==","pcrs":[0],"expires":"2026-01-02T03:04:05Z","machine":"` + string(bytes.Repeat([]byte("ab"), 32)) + `","proveKeys":true}`,
		`{"challengeID":"c","activationProof":"AA==","keysProven":true,"evidence":{}}`,
		`{"challengeID":"c","activationProof":"AA=="}`,
		`{"releaseID":"r","outcome":"unlocked","proof":"AA=="}`,
		`{"id":"r","machine":"` + string(bytes.Repeat([]byte("ab"), 32)) + `","issued":"2026-01-02T03:04:05Z","key":{"public":"AA=="},"sealed":"AA=="}`,
		`{"diskKey":"AA==","nodeName":"n","join":{"server":"https://x","ca":"AA==","token":"AA=="}}`,
		`{"request":"00000 00000","reason":"r","minutes":10}`,
		`{"recoveryCode":"AA==","recovery":{"id":"r","bootKey":"AA==","approvals":[{"by":"a","reason":"b","time":"2026-01-02T03:04:05Z"}]}}`,
		`{"policy":"AA==","bundle":"AA==","files":{"dbx.bin":"AA=="},"images":[{"manifest":"AA==","bundle":"AA=="}],"reason":"r","rollback":true}`,
		`{"name":"n","version":2,"signed":true,"revision":3,"replicas":[{"name":"a","version":1,"confirmed":"2026-01-02T03:04:05Z","seen":"2026-01-02T03:04:05Z","inputs":"` + string(bytes.Repeat([]byte("ab"), 32)) + `"}]}`,
		`{"policy":"AA==","files":{"dbx.bin":"AA=="},"images":[{"manifest":"AA==","bundle":"AA=="}],"at":"2026-01-02T03:04:05Z"}`,
		`{"machine":{"id":"","nodeName":"n","state":"enrolled","effect":"refused","now":[],"then":["image.denied"],"reasons":[{"code":"image.denied","pcr":4,"message":"m"}]}}`,
		`{"summary":{"policy":"p","machines":1,"effects":{"refused":1},"models":[{"vendor":"v","effects":{"none":2}}]}}`,
		`{"machines":[{"serial":"s","ek":"` + string(bytes.Repeat([]byte("cd"), 32)) + `","model":"m","withdrawn":true}],"apply":true,"replace":true}`,
		`{"results":[{"outcome":"conflict","problem":"p","hint":"h"}]}`,
		`{"new":"` + string(bytes.Repeat([]byte("ef"), 32)) + `","reason":"r"}`,
		`{"id":"","state":"pending","nodeName":"n","diskGUID":"g","next":{"diskGUID":"h"},"findings":["x"]}`,
		`{"id":"","state":"enrolled","nodeName":"n","bankProof":{"answer":"unable","at":"2026-01-02T03:04:05Z","detail":"d","vendor":"STM ","model":"m","proven":"2026-01-02T03:04:05Z"}}`,
		`{"machine":{"id":"","nodeName":"n","state":"enrolled","effect":"not asked","now":[],"then":["bank.unproven"],"banks":"silent"}}`,
		`{"older":86400,"reason":"r","dryRun":true}`,
		`{"before":"2026-01-02T03:04:05Z","done":true,"removed":3,"kept":{"last":2}}`,
		`{"store":"sqlite","schema":3,"bytes":1,"machines":{"count":1,"bytes":-1},"prune":{"before":"2026-01-02T03:04:05Z","kept":{}}}`,
		`{"present":"a","former":["b"],"lost":[],"uses":[{"kek":"a","role":"present","diskKeys":1}],"rewrap":{"to":"a","keys":1,"started":"2026-01-02T03:04:05Z"}}`,
		`{"held":true,"reason":"r","missing":[{"nodeName":"n","what":"w","mend":"m"}],"missingMore":1}`,
		`{"name":"c","vendor":"v","product":"p","from":"1","to":"2","wave":["` + string(bytes.Repeat([]byte("ab"), 32)) + `"]}`,
		`{"code":"c","message":"m","hint":"h"}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		roundTrip[ChallengeRequest](t, b)
		roundTrip[Challenge](t, b)
		roundTrip[EvidenceRequest](t, b)
		roundTrip[EvidenceResponse](t, b)
		roundTrip[KeyRequest](t, b)
		roundTrip[ConfirmRequest](t, b)
		roundTrip[Envelope](t, b)
		roundTrip[Release](t, b)
		roundTrip[Secrets](t, b)
		roundTrip[InstallRecord](t, b)
		roundTrip[StateChange](t, b)
		roundTrip[StoredEvidence](t, b)
		roundTrip[RecoveryOpen](t, b)
		roundTrip[RecoveryApprove](t, b)
		roundTrip[RecoveryTake](t, b)
		roundTrip[Recovery](t, b)
		roundTrip[RecoveryCode](t, b)
		roundTrip[PolicyEnable](t, b)
		roundTrip[PolicyState](t, b)
		roundTrip[PolicyProposal](t, b)
		roundTrip[WhatIf](t, b)
		roundTrip[Machine](t, b)
		roundTrip[ExpectedList](t, b)
		roundTrip[ExpectedAnswer](t, b)
		roundTrip[ReEnrol](t, b)
		roundTrip[RestoreStatus](t, b)
		roundTrip[StoreStatus](t, b)
		roundTrip[PruneRequest](t, b)
		roundTrip[PruneReport](t, b)
		roundTrip[KEKRewrapRequest](t, b)
		roundTrip[KEKStatus](t, b)
		roundTrip[DiskKeyRotation](t, b)
		roundTrip[firmware.Campaign](t, b)
		roundTrip[Error](t, b)
	})
}

func roundTrip[T any](t *testing.T, b []byte) {
	t.Helper()
	var v, w T
	if strict.Decode(bytes.NewReader(b), &v) != nil {
		return
	}
	first, err := json.Marshal(&v)
	if err != nil {
		t.Fatalf("%T was decoded but not encoded: %v", v, err)
	}
	if err := strict.Decode(bytes.NewReader(first), &w); err != nil {
		t.Fatalf("%T does not decode what it encodes: %v\n%s", v, err, first)
	}
	second, err := json.Marshal(&w)
	if err != nil || !bytes.Equal(first, second) {
		t.Fatalf("%T changes when it is decoded again: %v\n%s\n%s", v, err, first, second)
	}
}
