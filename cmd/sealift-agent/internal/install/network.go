package install

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"github.com/sealift/sealift/image/manifest"
	"github.com/sealift/sealift/provisioner/api"
)

// Network is the provisioner as a Source.
type Network struct {
	Server *Server
	Host   api.HostKey
	Log    *slog.Logger

	plan api.Plan // set by Manifest
}

// Manifest asks for the plan until there is one, then fetches what it names.
func (n *Network) Manifest(ctx context.Context) (raw, bundle []byte, err error) {
	err = retry(ctx, n.Log, "fetch the signed manifest", func() error {
		plan, err := n.Server.Plan(ctx, n.Host)
		if err != nil {
			return err
		}
		n.plan = *plan
		if raw, err = n.Server.Get(ctx, plan.Manifest, manifest.MaxSize); err != nil {
			return err
		}
		bundle, err = n.Server.Get(ctx, plan.Bundle, maxBundle)
		return err
	})
	return raw, bundle, err
}

// Disk downloads the disk that the plan names.
func (n *Network) Disk(ctx context.Context, size int64) (io.ReadCloser, error) {
	if n.plan.Disk == "" {
		return nil, fmt.Errorf("download: there is no plan")
	}
	return n.Server.Download(ctx, n.plan.Disk, size)
}

// Progress posts the progress once.
func (n *Network) Progress(ctx context.Context, p api.Progress) error {
	return n.Server.Post(ctx, api.PathProgress, p)
}

// Record posts the record until it is taken.
func (n *Network) Record(ctx context.Context, r api.Record) error {
	return retry(ctx, n.Log, "leave the install record", func() error {
		return n.Server.Post(ctx, api.PathRecord, r)
	})
}
