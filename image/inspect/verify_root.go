package inspect

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/sealift/sealift/image/guid"
	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/image/verity"
	"github.com/sealift/sealift/profiles"
)

func (v *verifier) rootJobs() []job {
	return []job{
		result("root.superblock", v.checkSuperblock),
		result("root.verity", v.checkVerity),
		result("root.guids", v.checkRootGUIDs),
		result("root.salt", v.checkSalt),
		result("root.unused", v.checkRootUnused),
		result("root.erofs", v.checkRoot),
	}
}

func (v *verifier) checkSuperblock(context.Context) (string, error) {
	sb, err := v.super()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("format 1, SHA-256, %d bytes", sb.DataSize), several(present(
		same("file system in the manifest", v.m.Root.FSType, "erofs"),
		same("size of the root file system", sb.DataSize, v.m.Root.Size),
		same("UUID of the superblock", sb.UUID.String(), v.m.Root.VerityUUID),
		same("UUID of the superblock", sb.UUID.String(), guid.Derive("dev.sealift.verity", v.m.Root.RootHash[:]).String()),
		same("salt", manifest.SHA256(sb.Salt), v.m.Root.Salt),
	))
}

// present leaves out what is nil.
func present(errs ...error) []error {
	var out []error
	for _, err := range errs {
		if err != nil {
			out = append(out, err)
		}
	}
	return out
}

// checkVerity recomputes the hash tree and holds its root against manifest and
// command line.
func (v *verifier) checkVerity(ctx context.Context) (string, error) {
	sb, err := v.super()
	if err != nil {
		return "", err
	}
	data, err1 := v.partition(manifest.RoleRootA)
	hashes, err2 := v.partition(manifest.RoleRootVerityA)
	if err := errors.Join(err1, err2); err != nil {
		return "", err
	}
	got, err := rootHash(ctx, data, hashes, sb, v.Workers)
	if err := several(present(err, same("root hash of the data", got, v.m.Root.RootHash))); err != nil {
		return "", err
	}
	image, err := v.uki()
	if err != nil {
		return "", fmt.Errorf("root hash in the command line: %w", err)
	}
	cmdline, err := peSection(image, ".cmdline")
	if err != nil {
		return "", err
	}
	named, err := cmdlineHash(string(cmdline))
	if err != nil {
		return "", err
	}
	return got.String(), same("root hash of the data, against the command line,", got, named)
}

// checkRootGUIDs checks that the partitions of slot A carry the root hash.
func (v *verifier) checkRootGUIDs(context.Context) (string, error) {
	t, err := v.table()
	if err != nil {
		return "", err
	}
	hash := v.m.Root.RootHash
	for label, half := range map[string][16]byte{manifest.RoleRootA: [16]byte(hash[:16]), manifest.RoleRootVerityA: [16]byte(hash[16:])} {
		found := false
		for _, p := range t.Partitions {
			if p.Name != label {
				continue
			}
			found = true
			if err := same("GUID of partition "+label, p.GUID.String(), guid.FromBytes(half).String()); err != nil {
				return "", err
			}
		}
		if !found {
			return "", fmt.Errorf("the disk has no partition %s", label)
		}
	}
	return "the partitions of slot A have the halves of the root hash", nil
}

// checkSalt derives the salt, which binds name, version and lock to the tree.
func (v *verifier) checkSalt(context.Context) (string, error) {
	sb, err := v.super()
	if err != nil {
		return "", err
	}
	want := manifest.SHA256(verity.SaltFor(v.m.LockDigest, v.m.Name, v.m.Version))
	return "from lock, name and version", same("salt", manifest.SHA256(sb.Salt), want)
}

func (v *verifier) checkRootUnused(context.Context) (string, error) {
	sb, err := v.super()
	if err != nil {
		return "", err
	}
	for role, used := range map[string]int64{manifest.RoleRootA: sb.DataSize, manifest.RoleRootVerityA: verity.Size(sb.DataSize)} {
		p, err := v.partition(role)
		if err != nil {
			return "", err
		}
		off, err := firstNonZero(p, used, p.Size())
		if err != nil {
			return "", err
		}
		if off >= 0 {
			return "", fmt.Errorf("partition %s has data at its byte %d, behind the %d that it uses", role, off, used)
		}
	}
	return "what follows file system and hash tree is zero", nil
}

// readRoot lists the file system. Its files are hashed if there is an SBOM to
// hold the digests against.
func (v *verifier) readRoot(ctx context.Context) (*Root, error) {
	p, err := v.partition(manifest.RoleRootA)
	if err != nil {
		return nil, err
	}
	_, spdx := v.m.Artifact(manifest.KindSPDX)
	_, cyclonedx := v.m.Artifact(manifest.KindCycloneDX)
	return ReadRoot(ctx, p, RootOptions{
		Hash: !v.DiskOnly && (spdx || cyclonedx),
		Keep: func(path string) bool { return path == profiles.NodeConfigPath || path == osReleasePath },
	})
}

// checkRoot reads what the file system says about itself.
func (v *verifier) checkRoot(context.Context) (string, error) {
	r, err := v.root()
	if err != nil {
		return "", err
	}
	d := json.NewDecoder(bytes.NewReader(r.Kept[profiles.NodeConfigPath]))
	var c profiles.NodeConfig
	if err := d.Decode(&c); err != nil {
		return "", fmt.Errorf("%s: %w", profiles.NodeConfigPath, err)
	}
	for _, f := range r.Files {
		if f.MTime != v.m.Epoch {
			return "", &Mismatch{What: "time of " + f.Path, Got: fmt.Sprint(f.MTime), Want: fmt.Sprintf("%d, the epoch", v.m.Epoch)}
		}
	}
	return fmt.Sprintf("%d files, %s %s", len(r.Files), c.Distro, c.Version), several(present(
		same("size of the file system", r.Size, v.m.Root.Size),
		same("build time of the file system", r.BuildTime, v.m.Epoch),
		same("image in node.json", c.Image, v.m.Name+" "+v.m.Version),
		same("Kubernetes distro in node.json", c.Distro, v.m.Kubernetes.Distro),
		same("Kubernetes version in node.json", c.Version, v.m.Kubernetes.Version),
	))
}
