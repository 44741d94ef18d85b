package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/url"
	"strings"

	"github.com/sealift/sealift/cmd/sealift/internal/keyring"
	"github.com/sealift/sealift/image/inputs"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/oci"
	"github.com/sealift/sealift/image/provenance"
	"github.com/sealift/sealift/image/sbom"
	"github.com/sealift/sealift/profiles"
)

// maxDatabase is how much more than the slot a base image may have with its
// package database, in bytes.
const maxDatabase = 256 << 20

// baseImage reads the image that base oci starts from, with the package
// database that the root file system does not get. Nil for another base. The
// content of its files lies in dir.
func baseImage(ctx context.Context, dir string, in *inputs.Inputs, profile *profiles.Profile, lock *profiles.Lock) (*sbom.Base, error) {
	if profile.Base != profiles.BaseOCI || lock.OCI == nil {
		return nil, nil
	}
	t, err := oci.Flatten(ctx, dir, in.Base, int64(profile.Disk.Slot)<<20+maxDatabase, func(name string) bool {
		switch name {
		case "boot", "dev", "proc", "run", "sys", "tmp":
			return true
		}
		below := strings.HasPrefix(name, "var/") && !strings.HasPrefix(name, "var/lib/dpkg/")
		return below && name != "var/lib" && name != "var/lib/dpkg"
	})
	if err != nil {
		return nil, err
	}
	b := &sbom.Base{Name: lock.OCI.Source, Tree: t}
	if err := b.Digest.UnmarshalText([]byte(strings.TrimPrefix(lock.OCI.Digest, "sha256:"))); err != nil {
		return nil, fmt.Errorf("base image: %w", err)
	}
	return b, nil
}

// provenance is what the command knows of a build: the profile's file, the
// lock, the programs, the public keys and who builds.
func (o *buildOptions) provenance(ctx context.Context, lock *profiles.Lock, ring *keyring.Keyring) (provenance.Parameters, error) {
	var none provenance.Parameters
	if u, err := url.Parse(o.builder); err != nil || u.Scheme == "" || len(o.builder) > 1000 {
		return none, usage{fmt.Errorf("--builder-id is %.100q, want a URI", o.builder)}
	}
	sum, err := fileSum(ctx, o.profile)
	if err != nil {
		return none, err
	}
	p := provenance.Parameters{ProfileDigest: manifest.SHA256(sum), Keys: map[string]string{}, Builder: o.builder, Version: version()}
	if p.Dependencies, err = provenance.FromLock(lock); err != nil {
		return none, err
	}
	for _, program := range []struct{ name, file string }{{"sealift-agent", o.agent}, {"sealift-pause", o.pause}} {
		r, err := provenance.FromFile(program.name, program.file)
		if err != nil {
			return none, err
		}
		p.Dependencies = append(p.Dependencies, r)
	}
	for _, k := range []struct {
		name string
		read func(string) ([]byte, error)
		kind string
	}{
		{keyring.FilePK, ring.CertificatePEM, ".crt"}, {keyring.FileKEK, ring.CertificatePEM, ".crt"},
		{keyring.FileDB, ring.CertificatePEM, ".crt"}, {keyring.FileServiceCA, ring.CertificatePEM, ".crt"},
		{keyring.FileImage, ring.PublicPEM, ".pub"}, {keyring.FilePCR, ring.PublicPEM, ".pub"}, {keyring.FileRelease, ring.PublicPEM, ".pub"},
	} {
		b, err := k.read(k.name)
		if err != nil {
			return none, err
		}
		p.Keys[k.name+k.kind] = fmt.Sprintf("%x", sha256.Sum256(b))
	}
	return p, nil
}
