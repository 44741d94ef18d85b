package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/sealift/sealift/attest/client/operator"
	"github.com/sealift/sealift/firmware"
)

func newCampaignCommand(e *env) *cobra.Command {
	return newGroup("campaign", "Move machines from one firmware build to another", `
A campaign lets the machines of its wave boot a new firmware build beside the old
one, until each has booted the new one by measurement.`, `
  sealift firmware campaign list`,
		newCampaignCreateCommand(e), newCampaignListCommand(e), newCampaignShowCommand(e))
}

func newCampaignCreateCommand(e *env) *cobra.Command {
	var o operatorOptions
	var c firmware.Campaign
	var machines []string
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Open a campaign of one wave",
		Long: `Opens a campaign. While it is open, the machines of its wave may boot the old
build or the new one. When each of them has booted the new one, by measurement,
the campaign is proven and the old build is refused to them.

Example:
  sealift firmware campaign create bios-2 --vendor Sealift --product demo-box \
    --from 0.0.0 --to 2.0.0 --machine 6f0c...e1` + exitStatus,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c.Name = args[0]
			for _, m := range machines {
				id, err := parseMachine(m)
				if err != nil {
					return err
				}
				c.Wave = append(c.Wave, id)
			}
			return o.do(func(client *operator.Client) error {
				body, err := client.PostCampaign(cmd.Context(), c)
				if err != nil {
					return err
				}
				return printCampaigns(e, body)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.Vendor, "vendor", "", "SMBIOS type 1 manufacturer of the model (required)")
	f.StringVar(&c.Product, "product", "", "SMBIOS type 1 product name of the model (required)")
	f.StringVar(&c.From, "from", "", "version to leave (required)")
	f.StringVar(&c.To, "to", "", "version to reach (required)")
	f.StringArrayVar(&machines, "machine", nil, "`id` of a machine of the wave (required, repeatable)")
	required(cmd, "vendor", "product", "from", "to", "machine")
	o.addFlags(cmd)
	return cmd
}

func newCampaignListCommand(e *env) *cobra.Command {
	var o operatorOptions
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List campaigns",
		Long: `Lists all campaigns. With --json, one object a line.

Example:
  sealift firmware campaign list` + exitStatus,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.do(func(client *operator.Client) error {
				all, err := client.Campaigns(cmd.Context())
				if err != nil {
					return err
				}
				return printCampaigns(e, all...)
			})
		},
	}
	o.addFlags(cmd)
	return cmd
}

func newCampaignShowCommand(e *env) *cobra.Command {
	var o operatorOptions
	cmd := &cobra.Command{
		Use:   "show NAME",
		Short: "Show a campaign",
		Long: `Shows one campaign and how many machines have proven it; with --json, which.

Example:
  sealift firmware campaign show bios-2 --json` + exitStatus,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			// The name becomes a part of a path.
			if name := args[0]; strings.Trim(name, ".") == "" || strings.ContainsAny(name, "/") {
				return usage{fmt.Errorf("%q is not the name of a campaign", name)}
			}
			return o.do(func(client *operator.Client) error {
				body, err := client.Campaign(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return printCampaigns(e, body)
			})
		},
	}
	o.addFlags(cmd)
	return cmd
}

func printCampaigns(e *env, all ...json.RawMessage) error {
	w := tabwriter.NewWriter(e.out, 0, 4, 2, ' ', 0)
	if !e.json {
		fmt.Fprintln(w, "NAME\tSTATE\tMODEL\tFROM\tTO\tPROVEN\tOPENED")
	}
	for _, body := range all {
		var c firmware.Campaign
		if err := json.Unmarshal(body, &c); err != nil {
			return fmt.Errorf("read campaign: %w", err)
		}
		if e.json {
			if err := json.NewEncoder(e.out).Encode(c); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s %s\t%s\t%s\t%d of %d\t%s\n", c.Name, c.State, plain(c.Vendor), plain(c.Product), plain(c.From), plain(c.To),
			len(c.Proofs), len(c.Wave), c.Opened.UTC().Format(time.RFC3339))
	}
	return w.Flush()
}
