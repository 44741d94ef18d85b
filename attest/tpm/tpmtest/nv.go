package tpmtest

import (
	"github.com/google/go-tpm/tpm2"
)

// DefineNV makes an NV index that everyone may read, with data in it.
func (d *TPM) DefineNV(index uint32, data []byte) {
	d.tb.Helper()
	public := tpm2.TPMSNVPublic{
		NVIndex:    tpm2.TPMHandle(index),
		NameAlg:    tpm2.TPMAlgSHA256,
		Attributes: tpm2.TPMANV{OwnerWrite: true, OwnerRead: true, AuthRead: true, NoDA: true, NT: tpm2.TPMNTOrdinary},
		DataSize:   uint16(len(data)),
	}
	owner := tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
	if _, err := (tpm2.NVDefineSpace{AuthHandle: owner, PublicInfo: tpm2.New2B(public)}).Execute(d); err != nil {
		d.tb.Fatalf("tpmtest: define NV index %#x: %v", index, err)
	}
	for off := 0; off < len(data); {
		n := min(512, len(data)-off)
		_, err := tpm2.NVWrite{
			AuthHandle: owner,
			// The name covers the attribute "written", which the first write
			// sets, so it is read anew each time.
			NVIndex: d.nv(index),
			Data:    tpm2.TPM2BMaxNVBuffer{Buffer: data[off : off+n]},
			Offset:  uint16(off),
		}.Execute(d)
		if err != nil {
			d.tb.Fatalf("tpmtest: write NV index %#x: %v", index, err)
		}
		off += n
	}
}

// UndefineNV removes an NV index, as the platform's firmware could.
func (d *TPM) UndefineNV(index uint32) {
	d.tb.Helper()
	_, err := tpm2.NVUndefineSpace{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)},
		NVIndex:    d.nv(index),
	}.Execute(d)
	if err != nil {
		d.tb.Fatalf("tpmtest: remove NV index %#x: %v", index, err)
	}
}

func (d *TPM) nv(index uint32) tpm2.NamedHandle {
	d.tb.Helper()
	rsp, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(index)}.Execute(d)
	if err != nil {
		d.tb.Fatalf("tpmtest: read public area of NV index %#x: %v", index, err)
	}
	return tpm2.NamedHandle{Handle: tpm2.TPMHandle(index), Name: rsp.NVName}
}
