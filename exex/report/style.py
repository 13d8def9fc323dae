"""The page's style and script, which it carries inline."""

STYLE = """
:root{color-scheme:light dark;--ground:#fbfaf8;--card:#fff;--ink:#1d2129;--soft:#626a76;--line:#e4e2dc;--band:rgba(190,60,60,.10);
--c1:#3a6fd8;--c2:#d98a1f;--c3:#2b9a7c;--c4:#8a5cc7;--c5:#cf4b4b;--c6:#98a0ac}
@media(prefers-color-scheme:dark){:root{--ground:#14161a;--card:#1c1f25;--ink:#e8e9ec;--soft:#9aa2ae;--line:#30353d;
--band:rgba(230,90,90,.16);--c1:#6b9bff;--c2:#eba648;--c3:#4cc2a1;--c4:#b08be8;--c5:#ef7272;--c6:#79818d}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
font-variant-numeric:tabular-nums}
main{max-width:1120px;margin:0 auto;padding:32px 24px 64px}
header p{margin:2px 0;color:var(--soft)}
h1{font-size:27px;line-height:1.2;margin:0 0 4px;letter-spacing:-.01em}
h2{font-size:18px;margin:0;letter-spacing:-.005em}
h3{font-size:13px;font-weight:600;margin:14px 0 4px;color:var(--soft)}
.warn{color:var(--c5)!important;font-weight:600}
.why{margin:2px 0 12px;color:var(--soft);max-width:78ch}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(160px,1fr));gap:12px;margin:24px 0 16px}
.cards div{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 14px}
.cards h3{margin:0}.cards b{display:block;font-size:25px;line-height:1.25;font-weight:650;letter-spacing:-.02em}
.cards p{margin:0;color:var(--soft);font-size:13px}
.findings{background:var(--card);border:1px solid var(--line);border-left:4px solid var(--c1);border-radius:6px;margin:0 0 16px;
padding:10px 14px 10px 30px}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:18px 20px;margin:16px 0}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{font-size:12px;fill:var(--soft)}svg .left{text-anchor:end}svg .small{font-size:9.5px}
svg .note{text-anchor:middle;font-size:11px}svg .on{text-anchor:middle;fill:#fff;font-weight:600;font-size:13px}
.grid{stroke:var(--line)}.tick{stroke:var(--soft)}.cursor{stroke:var(--soft);stroke-dasharray:3 3}
.band{fill:var(--band)}.ground{fill:none;stroke:var(--line)}.heat{image-rendering:pixelated}
.line{fill:none;stroke-width:1.6;vector-effect:non-scaling-stroke;stroke-linejoin:round}.area{opacity:.22}
.c1{--c:var(--c1)}.c2{--c:var(--c2)}.c3{--c:var(--c3)}.c4{--c:var(--c4)}.c5{--c:var(--c5)}.c6{--c:var(--c6)}
.line{stroke:var(--c)}.area,rect[class^=c]{fill:var(--c)}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;margin:8px 0 6px;font-size:13px;color:var(--soft)}
.legend i{display:inline-block;width:11px;height:11px;border-radius:3px;background:var(--c);margin-right:6px;vertical-align:-1px}
.many{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:16px 20px;margin-bottom:14px}
figure{margin:0}figcaption{font-weight:600;font-size:13px}figcaption span{color:var(--soft);font-weight:400}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:14px;margin-top:6px}
th{color:var(--soft);font-weight:600;font-size:12.5px;text-align:left}
th,td{padding:5px 10px 5px 0;border-bottom:1px solid var(--line);vertical-align:middle}
tbody tr:last-child td{border-bottom:0}
.n{text-align:right;white-space:nowrap}.marked td{font-weight:650}
em{font-style:normal;font-size:12px;font-weight:500;color:var(--card);background:var(--c1);border-radius:9px;padding:1px 8px}
.bars{min-width:220px}.bars i{display:block;height:7px;border-radius:3px;background:var(--c);margin:2px 0;min-width:1px}
.about summary{cursor:pointer;font-weight:600}pre{font-size:12px;overflow-x:auto}
#tip{position:fixed;pointer-events:none;display:none;background:var(--ink);color:var(--ground);border-radius:6px;padding:6px 9px;
font-size:12.5px;line-height:1.45;z-index:9;font-variant-numeric:tabular-nums}
#tip i{display:inline-block;width:9px;height:9px;border-radius:2px;margin-right:6px;background:var(--c)}
@media print{section{break-inside:avoid}}
@media(max-width:640px){main{padding:18px 12px}section{padding:14px 12px}svg text{font-size:20px}svg .small{font-size:14px}}
"""

SCRIPT = """
(function(){
var tip=document.getElementById('tip');
function clock(s){if(s<100)return s.toFixed(s<1?4:2)+' s';var w=Math.round(s),h=Math.floor(w/3600),m=Math.floor(w/60)%60,r=w%60;
function two(n){return(n<10?'0':'')+n}return h?h+':'+two(m)+':'+two(r)+' h':m+':'+two(r)+' min'}
document.querySelectorAll('svg[data-chart]').forEach(function(svg){
var d=JSON.parse(svg.dataset.chart),line=svg.querySelector('.cursor'),n=d.values[0].length;
function hide(){tip.style.display='none';line.setAttribute('visibility','hidden')}
svg.addEventListener('pointermove',function(e){
var box=svg.getBoundingClientRect(),x=(e.clientX-box.left)*svg.viewBox.baseVal.width/box.width;
if(x<d.left||x>d.right)return hide();
var part=(x-d.left)/(d.right-d.left),at=Math.min(n-1,Math.floor(part*n));
line.setAttribute('x1',x);line.setAttribute('x2',x);line.setAttribute('visibility','visible');
tip.textContent='';var head=document.createElement('div');head.textContent='at '+clock(d.begin+part*(d.end-d.begin));
tip.appendChild(head);
d.names.forEach(function(name,i){var row=document.createElement('div'),mark=document.createElement('i');
mark.className='c'+d.colours[i];
row.appendChild(mark);row.appendChild(document.createTextNode(name+' '+d.values[i][at]));tip.appendChild(row)});
tip.style.display='block';
tip.style.left=Math.min(e.clientX+14,innerWidth-tip.offsetWidth-8)+'px';tip.style.top=(e.clientY+16)+'px'});
svg.addEventListener('pointerleave',hide)})})();
"""
