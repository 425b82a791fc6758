/** How the plots look, on a light page and on a dark one. */

/** Colours that stand out from white as well as from near black. */
export const COLORS = ['#2f7de1', '#e07b1a', '#2ba36b', '#9a5bd6', '#d64550', '#12a3b4', '#b08a1e', '#d558a0'] as const;
export const NETWORK_COLOR = '#8c96a3';

export function color(index: number): string {
  return COLORS[index % COLORS.length] as string;
}

/** Without a style sheet that knows of dark pages, everything is drawn for a light one. */
export const STYLE = `
svg { font: 12px system-ui, "Noto Sans", "DejaVu Sans", sans-serif; }
.page { fill: #ffffff; }
text { fill: #1d2329; }
.title { font-size: 16px; font-weight: 600; }
.subtitle, .tick, .unit { fill: #58626d; }
.axis { stroke: #58626d; stroke-width: 1; }
.grid { stroke: #dfe3e8; stroke-width: 1; }
.floor { stroke: #1d2329; stroke-width: 2; }
@media (prefers-color-scheme: dark) {
  .page { fill: #15181c; }
  text { fill: #e8ebee; }
  .subtitle, .tick, .unit { fill: #a3adb8; }
  .axis { stroke: #a3adb8; }
  .grid { stroke: #30363d; }
  .floor { stroke: #e8ebee; }
}
`;

/** A box on the page. */
export interface Box {
  readonly x: number;
  readonly y: number;
  readonly width: number;
  readonly height: number;
}
