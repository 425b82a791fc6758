/** The little of SVG that the plots need. Coordinates are pixels from the upper left. */

export type Attributes = Readonly<Record<string, string | number>>;

/** An element with its attributes escaped; `content` is SVG already. */
export function element(name: string, attributes: Attributes, content = ''): string {
  const written = Object.entries(attributes)
    .map(([key, value]) => ` ${key}="${typeof value === 'number' ? pixel(value) : escapeXml(value)}"`)
    .join('');
  return content === '' ? `<${name}${written}/>` : `<${name}${written}>${content}</${name}>`;
}

export function text(x: number, y: number, content: string, attributes: Attributes = {}): string {
  return element('text', { x, y, ...attributes }, escapeXml(content));
}

export function line(x1: number, y1: number, x2: number, y2: number, style: string): string {
  return element('line', { x1, y1, x2, y2, class: style });
}

/** A path through the points. */
export function polyline(points: readonly (readonly [number, number])[], attributes: Attributes): string {
  return element('polyline', { points: points.map(([x, y]) => `${pixel(x)},${pixel(y)}`).join(' '), ...attributes });
}

/** What XML does not allow at all is left out: control characters and halves of a pair. */
export function escapeXml(value: string): string {
  return value
    .replace(/(?![\t\n\r])\p{Cc}|\p{Cs}|[\ufffe\uffff]/gu, '')
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll('"', '&quot;')
    .replaceAll("'", '&apos;');
}

export function pixel(value: number): string {
  return String(Number(value.toFixed(2)));
}

/** Text that takes at most so many characters; what tells similar ones apart is often at their ends. */
export function shorten(value: string, most: number): string {
  const characters = [...value];
  if (characters.length <= most) return value;
  const end = Math.floor(most / 3);
  return `${characters.slice(0, most - 1 - end).join('')}…${characters.slice(-end).join('')}`;
}

/** About how wide a text of the plots' size is. */
export function textWidth(value: string): number {
  return [...value].length * 6.7;
}

/** From 0 up to `largest` or a little above, in steps of 1, 2 or 5 times a power of ten, about `count` of them. */
export function ticks(largest: number, count: number): number[] {
  if (!(largest > 0 && Number.isFinite(largest))) return [0, 1];
  const rough = largest / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999) as number);
  const last = Math.ceil((largest / step) * 0.999);
  return Array.from({ length: last + 1 }, (_, i) => Number((i * step).toPrecision(12)));
}
